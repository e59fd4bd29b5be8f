//! The JSON Schemas of policy files and files of sources, made from the types that read them.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::raw::{ByHand, RawPolicy, RawSelector, RawTerms};
use super::sources::{RawSources, SOURCES_SCHEMA};
use super::written::{At, Labels, Listed, Maybe, Scalar, WordOr, Words};
use super::{Policy, SCHEMA, Source, load_policy};

/// A type that is written as another one.
macro_rules! written_as {
    ($([$($generic:tt)*] $what:ty => $as:ty;)*) => {
        $(
            impl<$($generic)*> JsonSchema for $what {
                fn inline_schema() -> bool {
                    <$as>::inline_schema()
                }

                fn schema_name() -> Cow<'static, str> {
                    <$as>::schema_name()
                }

                fn schema_id() -> Cow<'static, str> {
                    <$as>::schema_id()
                }

                fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                    <$as>::json_schema(generator)
                }
            }
        )*
    };
}

written_as! {
    [T: JsonSchema] At<T> => T;
    [T: JsonSchema] Maybe<T> => T;
}

macro_rules! written {
    ($([$($generic:tt)*] $what:ty, $name:literal => |$generator:ident| $schema:expr;)*) => {
        $(
            impl<$($generic)*> JsonSchema for $what {
                fn inline_schema() -> bool {
                    matches!($name, "Listed" | "WordOr")
                }

                fn schema_name() -> Cow<'static, str> {
                    $name.into()
                }

                #[allow(unused_variables, reason = "what refers to nothing else needs no generator")]
                fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                    $schema
                }
            }
        )*
    };
}

written! {
    [T: JsonSchema] Listed<T>, "Listed" => |generator| json_schema!({
        "type": "array", "items": generator.subschema_for::<T>(), "minItems": 1
    });
    [] Scalar, "Scalar" => |generator| json_schema!({"type": ["string", "integer", "boolean"]});
    [] Words, "Words" => |generator| json_schema!({
        "anyOf": [generator.subschema_for::<Scalar>(), generator.subschema_for::<Listed<Scalar>>()]
    });
    [] Labels, "Labels" => |generator| json_schema!({
        "type": "object", "additionalProperties": generator.subschema_for::<Words>(), "minProperties": 1
    });
    [W: JsonSchema, T: JsonSchema] WordOr<W, T>, "WordOr" => |generator| json_schema!({
        "anyOf": [generator.subschema_for::<W>(), generator.subschema_for::<T>()]
    });
    [] ByHand, "ByHand" => |generator| json_schema!({"enum": ["by-hand"]});
    [] RawSelector, "Selector" => |generator| json_schema!({
        "description": "any; members or subject in a container's or a template's rule; a map of which every field holds; or a list of which one holds.",
        "anyOf": [
            {"enum": ["any", "members", "subject"]},
            generator.subschema_for::<RawTerms>(),
            generator.subschema_for::<Listed<RawSelector>>(),
        ]
    });
}

fn generated<T: JsonSchema>(title: &str) -> String {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    schema["title"] = title.into();
    // Names of types are not the operator's.
    let mut text = serde_json::to_string_pretty(&schema)
        .unwrap()
        .replace("/Raw", "/");
    text = text.replace("    \"Raw", "    \"");
    text + "\n"
}

#[test]
fn the_shipped_schemas_are_those_of_the_types() {
    let all = [
        ("policy", generated::<RawPolicy>("Guestseal policy"), SCHEMA),
        (
            "sources",
            generated::<RawSources>("Guestseal sources"),
            SOURCES_SCHEMA,
        ),
    ];
    for (name, generated, built_in) in all {
        let path = format!("{}/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let shipped = std::fs::read_to_string(&path).unwrap();
        assert!(shipped == generated, "{name}: run with UPDATE_SCHEMA=1");
        assert!(
            shipped == built_in,
            "{name}: what is built in is what is shipped: build again"
        );
    }
}

/// Why a value is not what a schema says: as much of JSON Schema as ours uses, and nothing else is passed over.
fn mismatch(schema: &Value, value: &Value, root: &Value) -> Option<String> {
    for (word, wanted) in schema.as_object()? {
        let wrong = match word.as_str() {
            "$schema" | "title" | "description" | "default" | "format" | "definitions" => None,
            "$ref" => {
                let pointer = wanted.as_str()?.strip_prefix('#')?;
                mismatch(
                    root.pointer(pointer).expect("what is referred to is there"),
                    value,
                    root,
                )
            }
            "allOf" => wanted
                .as_array()?
                .iter()
                .find_map(|one| mismatch(one, value, root)),
            "anyOf" | "oneOf" => {
                let wrong: Vec<String> = wanted
                    .as_array()?
                    .iter()
                    .map_while(|one| mismatch(one, value, root))
                    .collect();
                (wrong.len() == wanted.as_array()?.len()).then(|| wrong.join(" / "))
            }
            "type" => {
                let is = |name: &Value| match name.as_str() {
                    Some("string") => value.is_string(),
                    Some("integer") => value.is_i64() || value.is_u64(),
                    Some("boolean") => value.is_boolean(),
                    Some("array") => value.is_array(),
                    Some("object") => value.is_object(),
                    other => panic!("type {other:?}"),
                };
                let passes = wanted
                    .as_array()
                    .map_or_else(|| is(wanted), |all| all.iter().any(is));
                (!passes).then(|| format!("{value} is not {wanted}"))
            }
            "enum" => (!wanted.as_array()?.contains(value)).then(|| format!("{value} is not in {wanted}")),
            "const" => (wanted != value).then(|| format!("{value} is not {wanted}")),
            "minimum" => value
                .as_f64()
                .filter(|number| *number < wanted.as_f64().unwrap())
                .map(|_| format!("{value} is too small")),
            "maximum" => value
                .as_f64()
                .filter(|number| *number > wanted.as_f64().unwrap())
                .map(|_| format!("{value} is too great")),
            "minItems" => value
                .as_array()
                .filter(|list| list.is_empty())
                .map(|_| "an empty list".to_owned()),
            "minProperties" => value
                .as_object()
                .filter(|map| map.is_empty())
                .map(|_| "an empty map".to_owned()),
            "items" => value
                .as_array()
                .and_then(|list| list.iter().find_map(|one| mismatch(wanted, one, root))),
            "required" => value.as_object().and_then(|map| {
                let missing = |name: &&Value| !map.contains_key(name.as_str().unwrap());
                wanted
                    .as_array()?
                    .iter()
                    .find(missing)
                    .map(|name| format!("{name} is missing"))
            }),
            "properties" => value.as_object().and_then(|map| {
                map.iter()
                    .find_map(|(name, value)| mismatch(wanted.get(name)?, value, root))
            }),
            "additionalProperties" => value.as_object().and_then(|map| {
                let known = schema.get("properties").and_then(Value::as_object);
                let others = map
                    .iter()
                    .filter(|(name, _)| !known.is_some_and(|known| known.contains_key(*name)));
                let mut wrong = others.filter_map(|(name, value)| match wanted {
                    Value::Bool(allowed) => (!allowed).then(|| format!("{name} is not known")),
                    schema => mismatch(schema, value, root),
                });
                wrong.next()
            }),
            other => panic!("the schema says {other}, which is not looked at"),
        };
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

fn checked(text: &str) -> Option<String> {
    mismatch_of(SCHEMA, text)
}

/// Why a text is not what a schema says.
pub(super) fn mismatch_of(schema: &str, text: &str) -> Option<String> {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let value: Value = serde_saphyr::from_str(text).unwrap();
    mismatch(&schema, &value, &schema)
}

#[test]
fn the_right_files_pass_the_schema() {
    for text in [super::tests::RIGHT, super::tests::EVENTS] {
        assert_eq!(checked(text), None);
    }
    let directories = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let mut files = 0;
    for directory in directories {
        for (name, text) in super::tests::policy_files(&directory.unwrap().path()) {
            assert_eq!(checked(&text), None, "{name}");
            files += 1;
        }
    }
    assert!(files > 0);
}

#[test]
fn what_the_loader_refuses_by_its_shape_the_schema_refuses() {
    let load = |text: &str| -> Result<Policy, _> {
        let (name, text) = ("policy.yaml".into(), text.into());
        load_policy(&[Source { name, text }])
    };
    for (right, wrong) in [
        ("rules: []", "rule: []"),
        (
            "rules: [{name: a, from: any, to: any, action: drop}]",
            "rules: [{name: a, from: any, to: any}]",
        ),
        (
            "rules: [{name: a, from: any, to: any, action: drop}]",
            "rules: [{name: a, from: all, to: any, action: drop}]",
        ),
        (
            "rules: [{name: a, from: [any], to: any, action: drop}]",
            "rules: [{name: a, from: [], to: any, action: drop}]",
        ),
        (
            "rules: [{name: a, from: any, to: any, action: drop, log: true}]",
            "rules: [{name: a, from: any, to: any, action: drop, log: maybe}]",
        ),
        (
            "rules: [{name: a, from: any, to: any, action: drop, protocol: udp, ports: [1]}]",
            "rules: [{name: a, from: any, to: any, action: drop, protocol: udp, ports: []}]",
        ),
        (
            "rules: [{name: a, from: {label: {x: [1, y]}}, to: any, action: drop}]",
            "rules: [{name: a, from: {label: {}}, to: any, action: drop}]",
        ),
        (
            "containers: [{name: a, release: by-hand}]",
            "containers: [{name: a, release: by-foot}]",
        ),
        (
            "containers: [{name: a, release: {after: 1m}}]",
            "containers: [{name: a, release: {before: 1m}}]",
        ),
        (
            "networks: [{name: a, type: vxlan, vni: 1}]",
            "networks: [{name: a, type: vxlan, vni: -1}]",
        ),
        (
            "rules: [{name: a, from: any, to: any, protocol: icmp, icmp-type: 255, action: drop}]",
            "rules: [{name: a, from: any, to: any, protocol: icmp, icmp-type: 256, action: drop}]",
        ),
    ] {
        assert!(
            load(right).is_ok() && checked(right).is_none(),
            "{right}: {:?}",
            checked(right)
        );
        assert!(load(wrong).is_err() && checked(wrong).is_some(), "{wrong}");
    }
}
