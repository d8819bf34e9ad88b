//! Two replicas of Tollgate behind one Envoy.

use crate::{
    common::{
        Tollgate,
        home::{Home, admin_address},
    },
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

/// Envoy with two workers, two replicas of Tollgate that share a Redis, and an upstream; and the commands that work on that Redis.
pub struct Pair {
    pub envoy: Envoy,
    pub replicas: [Tollgate; 2],
    /// Where the replicas have their admin APIs, which [`TOKEN`](Self::TOKEN) opens.
    pub admin: [String; 2],
    pub home: Home,
    _upstream: Upstream,
    _redis: RedisServer,
}

impl Pair {
    pub const TOKEN: &str = "admin-token-of-the-pair";

    /// With these plans and arguments, and the shipped configuration of Envoy as `change` leaves it.
    pub async fn start(plans: &str, args: &[&str], change: impl FnOnce(&mut EnvoyConfig)) -> Self {
        Self::start_with_keys(plans, args, &[], change).await.0
    }

    /// The same with API keys, made by `tollgate keys create` with these arguments each: their secrets.
    pub async fn start_with_keys<const N: usize>(
        plans: &str,
        args: &[&str],
        keys: &[&[&str]; N],
        change: impl FnOnce(&mut EnvoyConfig),
    ) -> (Self, [&'static str; N]) {
        let redis = RedisServer::start();
        let url = redis.url();
        let home = Home::in_redis(plans, &url);
        let secrets = keys.map(|key| {
            let made = home.json(&[&["keys", "create"], key].concat());
            // For headers of requests, which live as long as the test.
            &*made["secret"].as_str().expect("text").to_owned().leak()
        });
        let token = home.draft("token", Self::TOKEN);
        let mut replicas = [(); 2].map(|()| {
            let own = [
                &["--store", &url, "--store-timeout", "500ms"][..],
                &["--admin-token-file", &token],
                &["--admin-listen", "127.0.0.1:0"],
            ];
            Tollgate::start(&home.config, &[&own.concat()[..], args].concat())
        });
        let admin = replicas.each_mut().map(admin_address);
        let upstream = Upstream::fast_stats();
        let addresses = replicas.each_ref().map(|replica| replica.grpc.as_str());
        let mut config = EnvoyConfig::new(&addresses, upstream.address);
        change(&mut config);
        let pair = Self {
            envoy: Envoy::start_with_workers(&config, 2).await,
            replicas,
            admin,
            home,
            _upstream: upstream,
            _redis: redis,
        };
        (pair, secrets)
    }

    /// The sum of a metric over both, of which one may not have counted yet.
    pub fn metric(&self, name: &str) -> f64 {
        let counted = self.replicas.iter();
        let counted: Vec<f64> = counted
            .filter(|one| one.page("/metrics").contains(name))
            .map(|one| one.metric(name))
            .collect();
        assert!(!counted.is_empty(), "no {name}");
        counted.iter().sum()
    }
}
