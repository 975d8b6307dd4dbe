use super::*;

fn built(item: &Item, options: &BodyOptions) -> Value {
    let built = build(Api::OpenAiChat, &item.clone().into(), options);
    serde_json::from_slice(&built.body).unwrap()
}

#[test]
fn a_streamed_chat_body_asks_for_usage() {
    let options = BodyOptions {
        model: Some("m".into()),
        include_usage: true,
        max_tokens: Some(5),
        ..BodyOptions::default()
    };
    let body = build(Api::OpenAiChat, &Item::Text("hi".into()).into(), &options);
    assert_eq!(
        body.body,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    assert_eq!(body.max_output_tokens, Some(5));
}

#[test]
fn a_body_of_the_data_set_keeps_what_no_flag_names() {
    let own = json!({"model":"theirs","prompt":"p","stream":false,"max_tokens":9,"user":"u"});
    let Value::Object(own) = own else {
        unreachable!()
    };
    let item = Item::Body(own);
    let kept = built(
        &item,
        &BodyOptions {
            include_usage: true,
            ..BodyOptions::default()
        },
    );
    assert_eq!(kept["model"], "theirs");
    assert_eq!(kept["stream"], false);
    assert_eq!(kept["max_tokens"], 9);
    assert!(kept.get("stream_options").is_none());
    let changed = BodyOptions {
        model: Some("ours".into()),
        stream: Some(true),
        ignore_max_tokens: true,
        ..BodyOptions::default()
    };
    let changed = built(&item, &changed);
    assert_eq!(changed["model"], "ours");
    assert_eq!(changed["stream"], true);
    assert!(changed.get("max_tokens").is_none());
    assert_eq!(changed["user"], "u");
}

#[test]
fn a_conversation_becomes_one_prompt_for_completions() {
    let messages = vec![
        json!({"role":"system","content":"be brief"}),
        json!({"role":"user","content":"hi"}),
    ];
    let body = build(
        Api::OpenAiCompletions,
        &Item::Messages(messages).into(),
        &BodyOptions::default(),
    );
    let body: Value = serde_json::from_slice(&body.body).unwrap();
    assert_eq!(body["prompt"], "be brief\nhi");
}

#[test]
fn the_limit_is_the_flags_else_the_data_sets() {
    let prompt = Prompt {
        max_tokens: Some(7),
        ..Item::Text("hi".into()).into()
    };
    let limit = |options: &BodyOptions| {
        let built = build(Api::OpenAiChat, &prompt, options);
        let body: Value = serde_json::from_slice(&built.body).unwrap();
        assert_eq!(
            built.max_output_tokens.map(i64::from),
            body.get("max_tokens").and_then(Value::as_i64)
        );
        built.max_output_tokens
    };
    assert_eq!(limit(&BodyOptions::default()), Some(7));
    let flag = BodyOptions {
        max_tokens: Some(3),
        ..BodyOptions::default()
    };
    assert_eq!(limit(&flag), Some(3));
    let ignored = BodyOptions {
        ignore_max_tokens: true,
        ..BodyOptions::default()
    };
    assert_eq!(limit(&ignored), None);
}

fn api(name: &str) -> Api {
    Api::from_word(name).unwrap()
}

fn text_of(api: Api, item: Item, options: &BodyOptions) -> String {
    let built = build(api, &item.into(), options);
    String::from_utf8(built.body.to_vec()).unwrap()
}

#[test]
fn settings_go_where_the_dialect_has_them() {
    let fields = json!({"temperature": 0.5, "seed": 7, "best_of": 2});
    let options = BodyOptions {
        max_tokens: Some(5),
        fields: fields.as_object().cloned().unwrap(),
        ..BodyOptions::default()
    };
    assert_eq!(
        text_of(api("tgi"), Item::Text("hi".into()), &options),
        r#"{"inputs":"hi","parameters":{"best_of":2,"max_new_tokens":5,"do_sample":true,"temperature":0.5,"top_p":0.99,"seed":7,"details":true}}"#
    );
    assert_eq!(unplaced(api("tgi"), &options), Vec::<&str>::new());
    assert_eq!(unplaced(api("ollama"), &options), ["best_of"]);
    assert_eq!(unplaced(api("openai-chat"), &options), Vec::<&str>::new());
    assert_eq!(unplaced(api("openai-embeddings"), &options).len(), 4);
    let built = build(
        api("tensorrt-llm"),
        &Item::Text("hi".into()).into(),
        &options,
    );
    assert_eq!(built.model.as_deref(), Some("ensemble"));
}

#[test]
fn extra_fields_fill_objects_up_and_replace_all_else() {
    let extra = json!({"parameters": {"watermark": true, "top_p": null}, "inputs": "x"});
    let options = BodyOptions {
        extra: extra.as_object().cloned().unwrap(),
        ..BodyOptions::default()
    };
    assert_eq!(
        text_of(api("tgi"), Item::Text("hi".into()), &options),
        r#"{"inputs":"x","parameters":{"do_sample":true,"temperature":0.01,"top_p":null,"details":true,"watermark":true}}"#
    );
}

#[test]
fn a_query_template_is_a_body_with_model_and_prompt_filled_in() {
    let template =
        r#"{"model":"%m","messages":[{"role":"user","content":"Q: %p"}],"stream":false,"top_k":3}"#;
    let mut options = BodyOptions {
        model: Some("m".into()),
        include_usage: true,
        template: Some(template.parse().unwrap()),
        ..BodyOptions::default()
    };
    let item = Item::Text("why?".into());
    assert_eq!(
        text_of(Api::OpenAiChat, item.clone(), &options),
        r#"{"model":"m","messages":[{"role":"user","content":"Q: why?"}],"stream":false,"top_k":3}"#
    );
    options.stream = Some(true);
    options.max_tokens = Some(9);
    assert_eq!(
        text_of(Api::OpenAiChat, item, &options),
        r#"{"model":"m","messages":[{"role":"user","content":"Q: why?"}],"stream":true,"top_k":3,"max_tokens":9,"stream_options":{"include_usage":true}}"#
    );
}

#[test]
fn a_system_message_is_a_field_of_its_own_where_the_api_wants_it() {
    let messages = vec![
        json!({"role":"system","content":"be brief"}),
        json!({"role":"user","content":"hi"}),
    ];
    assert_eq!(
        text_of(
            api("anthropic-messages"),
            Item::Messages(messages),
            &BodyOptions::default()
        ),
        r#"{"system":"be brief","messages":[{"role":"user","content":"hi"}],"max_tokens":1024,"stream":true}"#
    );
}

#[test]
fn a_query_and_its_documents_are_lines() {
    assert_eq!(
        text_of(
            api("rerank"),
            Item::Text("q\nd 1\n\nd 2\n".into()),
            &BodyOptions::default()
        ),
        r#"{"query":"q","documents":["d 1","d 2"]}"#
    );
}
