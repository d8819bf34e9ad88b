//! Where envoyproxy/ratelimit refuses a file, so do we, and say its words among ours: who greps logs for them finds them.

use tollgate::plan::Plans;

/// A file, and what the reference's own loader was seen to say of it. `@` stands for what a file begins with, LIMIT for a good
/// limit, and `line` for the words that go before it. What no parser says alike is left out: of bad syntax only the
/// beginning is asked for.
#[rustfmt::skip]
const REFUSED: &[(&str, &str)] = &[
    ("@- key: a\n  metadata: {? [a, b] : c}\n  LIMIT", "error loading config file: yaml: invalid map key"),
    ("@- key: a\n  metadata: text\n  LIMIT", "line 4: !!str `text` into map[string]interface {}"),
    ("@- key: a\n  metadata: [a]\n  LIMIT", "line 4: !!seq into map[string]interface {}"),
    ("@- key: a\n  metadata: 5\n  LIMIT", "line 4: !!int `5` into map[string]interface {}"),
    ("@- {key: , LIMIT}", "descriptor has empty key"),
    ("@- {key: a, value: [b], LIMIT}", "config error, yaml file contains list of type other than map: b"),
    ("@- {key: a, value: [{key: b}], LIMIT}", "line 3: !!seq into string"),
    ("@- {key: a, value: {key: b}, LIMIT}", "line 3: !!map into string"),
    ("domain: []", "line 1: !!seq into string"),
    ("descriptors: []", "config file cannot have empty domain"),
    ("domain:", "config file cannot have empty domain"),
    ("- a", "line 1: !!seq into map[interface {}]interface {}"),
    ("text", "line 1: !!str `text` into map[interface {}]interface {}"),
    ("", "config file cannot have empty domain"),
    ("domain: a\ndescriptors: {key: b}", "line 2: !!map into []config.YamlDescriptor"),
    ("domain: a\ndescriptors: text", "line 2: !!str `text` into []config.YamlDescriptor"),
    ("domain: a\ndescriptors: 5", "line 2: !!int `5` into []config.YamlDescriptor"),
    ("domain: a\ndescriptors: 5.5", "error checking config"),
    ("@-", "config error, yaml file contains list of type other than map: <nil>"),
    ("@- text", "config error, yaml file contains list of type other than map: text"),
    ("@- 5", "config error, yaml file contains list of type other than map: 5"),
    ("@- {key: a, rate_limit: text}", "line 3: !!str `text` into config.YamlRateLimit"),
    ("@- {key: a, rate_limit: []}", "line 3: !!seq into config.YamlRateLimit"),
    ("@- {key: a, rate_limit: 1.5}", "error checking config"),
    ("@- {key: a, rate_limit: true}", "line 3: !!bool `true` into config.YamlRateLimit"),
    ("@- {key: a, rate_limit: {unit: [], requests_per_unit: 1}}", "line 3: !!seq into string"),
    ("@- {key: a, rate_limit: {unit: 5, requests_per_unit: 1}}", "invalid rate limit unit '5'"),
    ("@- {key: a, rate_limit: {unit: unknown, requests_per_unit: 1}}", "invalid rate limit unit 'unknown'"),
    ("@- {key: a, rate_limit: {requests_per_unit: 1}}", "invalid rate limit unit ''"),
    ("@- {key: a, rate_limit: {unit: fortnight}}", "invalid rate limit unit 'fortnight'"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: many}}", "line 3: !!str `many` into uint32"),
    (r#"@- {key: a, rate_limit: {unit: hour, requests_per_unit: "5"}}"#, "line 3: !!str `5` into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: 1.5}}", "error checking config"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: 5.0}}", "error checking config"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: 1e3}}", "error checking config"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: -1}}", "line 3: !!int `-1` into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: 4294967296}}", "line 3: !!int `4294967296` into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: true}}", "line 3: !!bool `true` into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: []}}", "line 3: !!seq into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: {}}}", "line 3: !!map into uint32"),
    ("@- {key: a, rate_limit: {unit: hour, requests_per_unit: 1:30}}", "line 3: !!str `1:30` into uint32"),
    ("@- {key: a, rate_limit: {unlimited: maybe}}", "line 3: !!str `maybe` into bool"),
    (r#"@- {key: a, rate_limit: {unlimited: "true"}}"#, "line 3: !!str `true` into bool"),
    ("@- {key: a, rate_limit: {unlimited: 1}}", "line 3: !!int `1` into bool"),
    ("@- {key: a, rate_limit: {unlimited: 1.5}}", "error checking config"),
    ("@- {key: a, rate_limit: {unlimited: []}}", "line 3: !!seq into bool"),
    ("@- {key: a, rate_limit: {unlimited: true, unit: hour}}", "should not specify rate limit unit when unlimited"),
    ("@- {key: a, rate_limit: {unit: hour, name: []}}", "line 3: !!seq into string"),
    ("@- {key: a, rate_limit: {unit: hour, name: {}}}", "line 3: !!map into string"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: a}}", "line 3: !!str `a` into []config.yamlReplaces"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: {name: a}}}", "line 3: !!map into []config.yamlReplaces"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: [a]}}", "config error, yaml file contains list of type other than map: a"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: [{}]}}", "should not have an empty replaces entry"),
    ("@- {key: a, rate_limit: {unit: hour, name: me, replaces: [{name: me}]}}", "replaces should not contain name of same descriptor"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: [~]}}", "config error, yaml file contains list of type other than map: <nil>"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: [{nam: a}]}}", "config error, unknown key 'nam'"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: [{name: []}]}}", "line 3: !!seq into string"),
    ("@- {key: a, rate_limit: {unit: hour, replaces: 1.5}}", "error checking config"),
    ("@- {key: a, value: 'x*', shadow_mode: maybe, LIMIT}", "line 3: !!str `maybe` into bool"),
    ("@- {key: a, value: 'x*', quota_mode: 1, LIMIT}", "line 3: !!int `1` into bool"),
    ("@- {key: a, value: 'x*', detailed_metric: [], LIMIT}", "line 3: !!seq into bool"),
    ("@- {key: a, value: 'x*', value_to_metric: maybe, LIMIT}", "line 3: !!str `maybe` into bool"),
    ("@- {key: a, value: 'x*', share_threshold: maybe, LIMIT}", "line 3: !!str `maybe` into bool"),
    ("@- {key: a, value: x, share_threshold: true, LIMIT}", "share_threshold can only be used with wildcard values (containing '*'), but found key 'a_x'"),
    ("@- {key: a, share_threshold: true, LIMIT}", "share_threshold can only be used with wildcard values (containing '*'), but found key 'a'"),
    ("@- {key: a, LIMIT}\n- {key: a, LIMIT}", "duplicate descriptor composite key 'shop.a'"),
    ("@- {key: a_b, LIMIT}\n- {key: a, value: b, LIMIT}", "duplicate descriptor composite key 'shop.a_b'"),
    ("@- key: a\n  value: v\n  descriptors:\n  - {key: b, value: c, LIMIT}\n  - {key: b, value: c, LIMIT}", "duplicate descriptor composite key 'shop.a_v.b_c'"),
    ("@- {key: a, ratelimit: {}, LIMIT}", "config error, unknown key 'ratelimit'"),
    ("domain: a\ndomains: b", "config error, unknown key 'domains'"),
    ("@- {key: a, rate_limit: {unit: hour, request_per_unit: 1}}", "config error, unknown key 'request_per_unit'"),
    ("@- {Key: a, LIMIT}", "config error, unknown key 'Key'"),
    ("@- {key: a, unit: {zz: 1}, LIMIT}", "config error, unknown key 'zz'"),
    ("@- {key: a, unit: [x], LIMIT}", "config error, yaml file contains list of type other than map: x"),
    ("@- key: a\n  5: x", "config error, key is not of type string: 5"),
    ("@- key: a\n  1.5: x", "config error, key is not of type string: 1.5"),
    ("@- key: a\n  true: x", "config error, key is not of type string: true"),
    ("@- key: a\n  yes: x", "config error, key is not of type string: true"),
    ("@- key: a\n  ~: x", "config error, key is not of type string: <nil>"),
    ("@- key: a\n  ? [a]\n  : x", "error loading config file: yaml: invalid map key"),
    ("@- {key: a, rate_limit: {unit: hour, 5: x}}", "config error, key is not of type string: 5"),
    ("@- {key: a, <<: text, LIMIT}", "error loading config file: yaml: map merge requires map or sequence of maps as the value"),
    ("domain: [a", "error loading config file: yaml: "),
    ("domain: a\n  key: b", "error loading config file: yaml: "),
    ("domain: 'a", "error loading config file: yaml: "),
    ("domain: a\n\tdescriptors: []", "error loading config file: yaml: "),
    ("domain: \"a\u{1}b\"", "error loading config file: yaml: control characters are not allowed"),
    ("domain: @a", "error loading config file: yaml: "),
];

#[test]
fn messages_contain_the_words_of_the_reference() {
    for (text, words) in REFUSED {
        let limit = "rate_limit: {unit: hour, requests_per_unit: 3}";
        let text = text.replace("LIMIT", limit);
        let text = match text.strip_prefix('@') {
            Some(rules) => format!("domain: shop\ndescriptors:\n{rules}\n"),
            None => text + "\n",
        };
        let words = match words.split_once(": !!") {
            Some((line, rest)) => format!(
                "error loading config file: yaml: unmarshal errors: {line}: cannot unmarshal !!{rest}"
            ),
            None => (*words).to_owned(),
        };
        match Plans::from_texts(&[("f", &text)]) {
            Ok(_) => panic!("loads:\n{text}"),
            Err(error) => assert!(
                error.to_string().contains(&words),
                "not `{words}`, but:\n{error}\n{text}"
            ),
        }
    }
}
