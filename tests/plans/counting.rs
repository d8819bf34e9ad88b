//! How limits count and when hits are charged: what a file says for all, what a rule says for itself and those below it.

use std::fs;

use tollgate::{
    limit::Algorithm,
    plan::{Allowance, Charge, Counting, LoadOptions, Plans, Rule, SharedPlans, Sources},
};

const FILE: &str = "
domain: shop
charge: independent
tiers: { free: { limits: [10/minute, 1/second sliding] } }
unmatched: 7/minute
descriptors:
  - { key: plain, rate_limit: { unit: week, requests_per_unit: 5 } }
  - { key: own, limits: [5/minute, 9/second burst 20, 7/month, 8/day calendar, 3/hour fixed] }
  - key: bucket
    algorithm: token_bucket
    charge: all_or_nothing
    overdraw: true
    limits: [5/minute, 7/month]
    descriptors:
      - { key: below, rate_limit: { unit: minute, requests_per_unit: 5 } }
      - { key: but, algorithm: fixed_window, overdraw: false, limits: [5/minute] }
  - { key: api_key, limits_from: tier }
";

fn limits(rule: &Rule) -> String {
    let texts = |limits: &[_]| {
        let texts = limits.iter().map(|limit: &std::sync::Arc<_>| {
            let limit: &tollgate::plan::RuleLimit = limit;
            limit.limit.to_string()
        });
        texts.collect::<Vec<_>>().join(", ")
    };
    match &rule.allowance {
        Allowance::Limits(limits) => texts(limits),
        Allowance::Tiers(tiers) => texts(&tiers[0]),
        other => panic!("{other:?}"),
    }
}

fn rules(plans: &Plans) -> Vec<(String, String, Counting)> {
    let rules = plans.domain("shop").unwrap().rules();
    rules
        .map(|rule| (rule.path.to_string(), limits(rule), rule.counting))
        .collect()
}

#[test]
fn a_rule_says_it_for_itself_and_those_below_a_file_for_all_and_settings_for_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans.yaml");
    fs::write(&path, FILE).unwrap();
    let settings = Counting {
        algorithm: Algorithm::FixedWindow,
        charge: Charge::StopWhenOver,
        overdraw: false,
    };
    let sources = Sources {
        paths: vec![path.clone()],
        options: LoadOptions {
            counting: settings,
            ..LoadOptions::default()
        },
    };
    let shared = SharedPlans::open(sources).unwrap();
    let plans = shared.load_full();
    let file = Counting {
        charge: Charge::Independent,
        ..settings
    };
    let bucket = Counting {
        algorithm: Algorithm::TokenBucket,
        charge: Charge::AllOrNothing,
        overdraw: true,
    };
    let but = Counting {
        algorithm: Algorithm::FixedWindow,
        overdraw: false,
        ..bucket
    };
    let own = "5/minute fixed, 9/second burst 20, 7/month fixed, 8/day calendar, 3/hour fixed";
    let expected = [
        ("plain", "5/week fixed", file),
        ("own", own, file),
        ("bucket", "5/minute, 7/month", bucket),
        ("bucket/below", "5/minute", bucket),
        ("bucket/but", "5/minute fixed", but),
        ("api_key", "10/minute fixed, 1/second sliding", file),
        ("(unmatched)", "7/minute fixed", file),
    ];
    let expected = expected.map(|(path, limits, counting)| (path.into(), limits.into(), counting));
    assert_eq!(rules(&plans), expected);

    fs::write(&path, FILE.replace("7/minute", "8/minute")).unwrap();
    assert!(shared.reload().unwrap());
    let last = rules(&shared.load_full()).pop().unwrap();
    assert_eq!(
        (&*last.1, last.2),
        ("8/minute fixed", file),
        "a reload keeps to the settings"
    );
}

#[test]
fn another_algorithm_starts_buckets_anew_and_another_charge_does_not() {
    let prefix = |text: &str| {
        let plans = Plans::from_texts(&[("plans.yaml", text)]).unwrap();
        let rule = plans
            .domain("shop")
            .unwrap()
            .rules()
            .next()
            .unwrap()
            .clone();
        match &rule.allowance {
            Allowance::Limits(limits) => limits[0].key_prefix().to_owned(),
            other => panic!("{other:?}"),
        }
    };
    let rule = "descriptors: [{ key: ip, rate_limit: { unit: hour, requests_per_unit: 5 } }]";
    let plain = prefix(&format!("domain: shop\n{rule}"));
    let charged = prefix(&format!(
        "domain: shop\ncharge: independent\noverdraw: true\n{rule}"
    ));
    let fixed = prefix(&format!("domain: shop\nalgorithm: fixed_window\n{rule}"));
    assert_eq!(plain, charged);
    assert_ne!(plain, fixed);
}
