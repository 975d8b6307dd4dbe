use super::*;

fn problem(text: &str) -> String {
    Dialect::parse(text, "own.toml", "own")
        .unwrap_err()
        .to_string()
}

const SMALL: &str = r#"
version = 1
[request]
path = "/generate"
body = '{"prompt": "%p"}'
[response]
text = "/text"
done_data = "[DONE]"
"#;

#[test]
fn every_built_in_dialect_is_read_and_can_be_recorded() {
    let mut names: Vec<&str> = Vec::new();
    for row in Api::built_in() {
        let dialect = row.dialect();
        assert_eq!(dialect.name, row.name);
        assert!(!dialect.about.is_empty(), "{}", row.name);
        let again = Dialect::from_recorded(&dialect.recorded).unwrap();
        assert_eq!(&again, dialect);
        assert_eq!(Api::from_word(row.name).unwrap().as_str(), row.name);
        assert!(dialect.serves(&dialect.path(Some("m"), true).unwrap()));
        assert!(dialect.serves(&format!("/gate{}", dialect.path(Some("m"), false).unwrap())));
        names.push(row.name);
        names.extend(row.aliases);
    }
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(
        unique.len(),
        names.len(),
        "no name stands for two: {names:?}"
    );
}

#[test]
fn a_file_is_named_by_its_stem_unless_it_has_a_name() {
    let named = |text: &str| Dialect::parse(text, "own.toml", "own").unwrap().name;
    assert_eq!(named(SMALL), "own");
    assert_eq!(
        named(&SMALL.replace("[request]", "name = \"other\"\n[request]")),
        "other"
    );
}

#[test]
fn what_a_file_extends_is_filled_up_and_not_replaced() {
    let text = r#"
version = 1
extends = "anthropic-messages"
[request]
path = "/gate/messages"
[request.headers]
x-gate = "1"
[response]
text = "/delta/text"
[response.usage]
cached_tokens = "/cached"
"#;
    let own = Dialect::parse(text, "own.toml", "own").unwrap();
    let base = Api::from_word("anthropic").unwrap().dialect();
    assert_eq!(own.request.headers.len(), 2);
    assert_eq!(own.request.body, base.request.body);
    assert_eq!(own.response.input_tokens, base.response.input_tokens);
    assert_ne!(own.response.cached_tokens, base.response.cached_tokens);
    assert_ne!(own.response.text, base.response.text);
    assert_eq!(own.about, "");
}

#[test]
fn a_bad_file_is_told_with_its_name_the_key_and_a_hint() {
    let replaced = |from: &str, to: &str| {
        assert!(SMALL.contains(from), "{from}");
        problem(&SMALL.replace(from, to))
    };
    for (found, parts) in [
        (
            problem("version = "),
            &["own.toml: ", "line 1", "record apis"][..],
        ),
        (problem(""), &["own.toml: `version` is missing"]),
        (
            replaced("version = 1", "version = 2"),
            &["version 2", "up to 1", "newer"],
        ),
        (replaced("path =", "pth ="), &["pth", "line 4", "`path`"]),
        (
            replaced("path = \"/generate\"", ""),
            &["`request.path` is missing"],
        ),
        (
            replaced("\"/generate\"", "\"generate\""),
            &["`request.path` is no path", "begins with"],
        ),
        (replaced("%p", "%prompt"), &["%prompt", "%p "]),
        (
            replaced("{\"prompt\": \"%p\"}", "{"),
            &["the body is no JSON object"],
        ),
        (
            replaced("\"/text\"", "\"text\""),
            &["no JSON pointer", "line 7"],
        ),
        (
            replaced("\"/text\"", "{ unless = \"/x\" }"),
            &["needs `at` or `when`"],
        ),
        (
            replaced("text = \"/text\"", ""),
            &["`response.text` is missing"],
        ),
        (
            replaced("done_data = \"[DONE]\"", ""),
            &["`response.finish` is missing", "end = \"close\""],
        ),
        (
            replaced("text = \"/text\"", "interpreter = \"openai\""),
            &["knows its own places"],
        ),
        (
            replaced("text = \"/text\"", "framing = \"csv\""),
            &["csv", "ndjson"],
        ),
        (
            replaced("[request]", "extends = \"tgy\"\n[request]"),
            &["`extends` names \"tgy\"", "tgi"],
        ),
        (
            replaced("[response]", "defaults = { promt = 1 }\n[response]"),
            &["`request.defaults.promt`"],
        ),
        (
            replaced("[response]", "api_key = \"Bearer\"\n[response]"),
            &["`request.api_key`", "%k"],
        ),
        (
            replaced("[response]", "rest = \"/a/*\"\n[response]"),
            &["`request.rest`"],
        ),
    ] {
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
    }
}

#[test]
fn a_body_that_others_wrote_is_read_by_the_places_of_the_template() {
    let facts = |name: &str, path: &str, body: &str| {
        request_facts(Api::from_word(name).unwrap(), path, body.as_bytes())
    };
    let ollama = facts(
        "ollama",
        "/api/chat",
        r#"{"model":"m","options":{"num_predict":5}}"#,
    );
    assert_eq!(ollama.model.as_deref(), Some("m"));
    assert_eq!(ollama.max_output_tokens, Some(5));
    assert!(ollama.stream, "Ollama streams unless told not to");
    assert!(!facts("ollama", "/api/chat", r#"{"stream":false}"#).stream);
    assert!(facts("tgi", "/x/generate_stream", "{}").stream);
    assert!(!facts("tgi", "/generate", r#"{"stream":true}"#).stream);
    assert!(!facts("rerank", "/rerank", r#"{"stream":true}"#).stream);
    assert_eq!(
        facts("tgi", "/generate", "[1"),
        facts("tgi", "/generate", "7")
    );
    let chat = facts(
        "openai-chat",
        "/",
        r#"{"max_completion_tokens":3,"stream":true}"#,
    );
    assert_eq!((chat.stream, chat.max_output_tokens), (true, Some(3)));
}
