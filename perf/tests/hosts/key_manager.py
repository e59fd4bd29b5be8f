"""What an operator does at a key manager, by PyKMIP's client: register NAME HEX, revoke NAME, or count NAME."""
import os
import sys

from kmip.core.enums import CryptographicAlgorithm, CryptographicUsageMask, RevocationReasonCode
from kmip.pie.client import ProxyKmipClient
from kmip.pie.objects import SymmetricKey

address, authority, certificate, key, verb, name, *rest = sys.argv[1:]
with ProxyKmipClient(
    hostname=address,
    port=5696,
    ca=authority,
    cert=certificate,
    key=key,
    ssl_version="PROTOCOL_TLSv1_2",
    config_file=os.devnull,
) as client:
    if verb == "register":
        material = bytes.fromhex(rest[0])
        masks = [CryptographicUsageMask.DERIVE_KEY]
        made = SymmetricKey(CryptographicAlgorithm.AES, 8 * len(material), material, masks=masks, name=name)
        client.activate(client.register(made))
        sys.exit(0)
    named = []
    for identifier in client.locate():
        _, attributes = client.get_attributes(identifier, ["Name"])
        if any(str(one.attribute_value.name_value.value) == name for one in attributes):
            named.append(identifier)
    if verb == "count":
        print(len(named))
    elif named:
        client.revoke(RevocationReasonCode.CESSATION_OF_OPERATION, named[0])
    else:
        sys.exit(f"{name}: no such key")
