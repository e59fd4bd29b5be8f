//! The published ESP packets of draft-mcgrew-gcm-test-01 (test cases for RFC 4106 and RFC 4543), byte for byte.
//! AES-192 is left out: no suite here has it.

use guestseal::aead::engine::{Engine, TAG};
use guestseal_rules::model::Suite;

use crate::conformance::{PLACINGS, open, seal_if_possible};

/// Seals and opens every packet.
pub(crate) fn all(engine: &dyn Engine) {
    for packet in PACKETS {
        packet.check(engine);
    }
    gmac(engine);
}

/// One test case of section 4, in hex. SPI, low sequence number and IV stand at the packet's begin, the tag at its end.
struct Packet {
    key: &'static str,
    salt: &'static str,
    /// With ESN, the half that is not in the packet.
    sequence_high: Option<u32>,
    plaintext: &'static str,
    packet: &'static str,
}

impl Packet {
    fn check(&self, engine: &dyn Engine) {
        let (key, plaintext, packet) = (bytes(self.key), bytes(self.plaintext), bytes(self.packet));
        let mut additional = packet[..4].to_vec();
        additional.extend(self.sequence_high.into_iter().flat_map(u32::to_be_bytes));
        additional.extend(&packet[4..8]);
        let mut nonce = bytes(self.salt);
        nonce.extend(&packet[8..16]);
        let nonce = nonce.try_into().unwrap();
        let (text, tag) = packet[16..].split_last_chunk::<TAG>().unwrap();
        let key = engine.expand(suite(&key), &key).unwrap();
        for placing in PLACINGS {
            if let Some(made) = seal_if_possible(engine, &key, nonce, &additional, &plaintext, placing) {
                assert_eq!((&made.0[..], &made.1), (text, tag), "{}", self.packet);
            }
            let opened = open(engine, &key, nonce, &additional, (text, tag), placing);
            assert_eq!(opened.as_deref(), Some(&plaintext[..]), "{}", self.packet);
        }
    }
}

/// The draft's case for RFC 4543: nothing is encrypted; SPI, sequence number, IV and payload are authenticated. Its IV
/// is 0, which no SA here ever seals with: it is opened only.
fn gmac(engine: &dyn Engine) {
    let key = bytes("4c80cdefbb5d10da906ac73c3613a634");
    let nonce = bytes("22433c640000000000000000").try_into().unwrap();
    let additional = bytes(concat!(
        "0000432100000007",
        "0000000000000000",
        "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364",
        "65666768696a6b6c6d6e6f707172737401020201",
    ));
    let tag: [u8; TAG] = bytes("f2a9a836e155106aa8dcd618e4099aaa").try_into().unwrap();
    let key = engine.expand(suite(&key), &key).unwrap();
    for placing in PLACINGS {
        assert!(seal_if_possible(engine, &key, nonce, &additional, &[], placing).is_none());
        assert!(open(engine, &key, nonce, &additional, (&[], &tag), placing).is_some());
    }
}

fn suite(key: &[u8]) -> Suite {
    match key.len() {
        32 => Suite::Aes256Gcm,
        _ => Suite::Aes128Gcm,
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap())
        .collect()
}

const PACKETS: &[Packet] = &[
    Packet {
        key: "4c80cdefbb5d10da906ac73c3613a634",
        salt: "2e443b68",
        sequence_high: Some(0x8765_4321),
        plaintext: concat!(
            "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f7369",
            "70045f756470037369700963796265726369747902646b000021000101020201",
        ),
        packet: concat!(
            "00004321000000004956ed7e3b244cfefecf537e729d5b07dc30df528dd22b768d1b98736696a6fd",
            "348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce",
            "61bc17d768fd9732459018148f6cbe722fd04796562dfdb4",
        ),
    },
    Packet {
        key: "feffe9928665731c6d6a8f9467308308",
        salt: "cafebabe",
        sequence_high: None,
        plaintext: concat!(
            "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000",
            "037369700963796265726369747902646b00000100010001",
        ),
        packet: concat!(
            "0000a5f80000000afacedbaddecaf888deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f",
            "1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1",
            "83b70d3aa8bc6ee4c309e9d85a41ad4a",
        ),
    },
    Packet {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        salt: "11223344",
        sequence_high: None,
        plaintext: concat!(
            "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000",
            "020405b40101040201020201",
        ),
        packet: concat!(
            "4a2cbfe3000000020102030405060708ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf",
            "06efae9d65a5d763748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c49",
            "15956c96",
        ),
    },
    Packet {
        key: "00000000000000000000000000000000",
        salt: "00000000",
        sequence_high: None,
        plaintext: concat!(
            "4500003c99c500008001cb7a40679318010101010800075c020044006162636465666768696a6b6c",
            "6d6e6f707172737475767761626364656667686901020201",
        ),
        packet: concat!(
            "000000000000000100000000000000004688daf2f973a392732909c331d56d60f694abaa414b5e7f",
            "f5fdcdfff5e9a284456476492719ffb64de7d9dca1e1d894bc3bd57873ed4d181d19d4d5c8c18af3",
            "f821d496eeb096e98ad2b69e4799c71d",
        ),
    },
    Packet {
        key: "3de09874b388e6491988d0c3607eae1f",
        salt: "57690e43",
        sequence_high: Some(0x1010_1010),
        plaintext: concat!(
            "4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768696a6b6c",
            "6d6e6f707172737475767761626364656667686901020201",
        ),
        packet: concat!(
            "42f67e3f101010104e280000a2fca1a3fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b0",
            "0d1138ec9c35791765acbd8701ad79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320a",
            "e0d731cc978ecafaeae88f00e80d6e48",
        ),
    },
    Packet {
        key: "3de09874b388e6491988d0c3607eae1f",
        salt: "57690e43",
        sequence_high: Some(0x1010_1010),
        plaintext: "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        packet: concat!(
            "42f67e3f101010104e280000a2fca1a3fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af913",
            "0e1379ed369f071f35e034be95f112e4e7d05d35",
        ),
    },
    Packet {
        key: "abbccddef00112233445566778899aab",
        salt: "decaf888",
        sequence_high: Some(0x0000_0000),
        plaintext: concat!(
            "4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d500004e20001e8c18",
            "d75b81dc91baa0476b91b924b280389d92c963bac046ec959b6266c04722b14923010101",
        ),
        packet: concat!(
            "0000010000000001cafedebaceface7418a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1",
            "c349c1d2fbec168f9190feebaf2cb01984e65863965d7472b79da345e0e780191f0d2f0e0f496c22",
            "6f2127b27db35724e7845d68651f57e65f354f75ff17015769623436",
        ),
    },
    Packet {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        salt: "73616c74",
        sequence_high: Some(0x156f_3126),
        plaintext: "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
        packet: concat!(
            "17405e67dd0db99b616e640169766563f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef6754",
            "9d524a3018d9a57ff4d3a31ce673119e451626c2415771e3b7eebca614c89b35",
        ),
    },
    Packet {
        key: "3de09874b388e6491988d0c3607eae1f",
        salt: "57690e43",
        sequence_high: Some(0x1010_1010),
        plaintext: concat!(
            "45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b000001e0001e8c18",
            "d65759d52284a0352c71475c8880391c764d6e5ee0496b325ae270c03899493915010101",
        ),
        packet: concat!(
            "42f67e3f101010104e280000a2fca1a3fba2cad12fc1f9f00d3cebf305410db83d7784b607323d22",
            "0f24b0a97d54182800cadb0f68d99ef0e0c0c89ae9bea8884e52d65bc1afd0740f742444747b5b39",
            "ab533163aad4550ee5160975cdb608c5769189609763b8e18caa81e2",
        ),
    },
    Packet {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        salt: "73616c74",
        sequence_high: Some(0x156f_3126),
        plaintext: concat!(
            "636973636f0172756c657301746865016e6574776501646566696e6501746865746563686e6f6c6f",
            "67696573017468617477696c6c01646566696e65746f6d6f72726f7701020201",
        ),
        packet: concat!(
            "17405e67dd0db99b616e640169766563d4b7ed86a1777f2ea13d6973d324c69e7b43f826fb568312",
            "26508bebd2dceb18d0a6df10e5487df074113e14c641024e3e6773d91a62ee429b043a10e3efe6b0",
            "12a49363412364f8c0cac587f249e56b11e24f30e44ccc76",
        ),
    },
    Packet {
        key: "7d773d00c144c525ac619d18c84a3f47",
        salt: "d9664267",
        sequence_high: None,
        plaintext: "01020201",
        packet: "335467aeffffffff43457e9182443bc6437f866bcb3f699fe9b0822bac961c4504bef270",
    },
    Packet {
        key: "abbccddef00112233445566778899aab",
        salt: "decaf888",
        sequence_high: Some(0x0000_0000),
        plaintext: "746f016265016f72016e6f7401746f0162650001",
        packet: concat!(
            "0000010000000001cafedebaceface7429c9fc69a197d038ccdd14e2ddfcaa054333216441250352",
            "4303ed3c6c5f283843af8c3e",
        ),
    },
    Packet {
        key: "6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961",
        salt: "7475726e",
        sequence_high: Some(0xffff_ffff),
        plaintext: concat!(
            "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768696a6b6c",
            "6d6e6f707172737401020201",
        ),
        packet: concat!(
            "796b6963ffffffff333021696765746df97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b6",
            "4a274b39b49c3a864cd3d78ca4ae68a32b42458fb57dbe821dcc63b9d0937ba2945f669368661a32",
            "9fb4c053",
        ),
    },
];
