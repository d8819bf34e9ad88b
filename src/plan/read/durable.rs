//! Reads `durable`.

use std::time::Duration;

use crate::plan::{
    fields::{Fields, Reader},
    file::DurableFile,
    mistake::Path,
    rule::MOST_REPLICAS,
    scalar::whole_number,
    shapes::DURABLE,
};

impl Reader<'_> {
    /// Reads how many replicas of Redis must have what a rule charges, and how long that is waited for.
    pub(super) fn durable(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> Option<DurableFile> {
        let node = fields.get("durable")?;
        let path = path.field("durable");
        let durable = self.fields(node, &path, &DURABLE)?;
        for name in DURABLE.fields {
            if durable.get(name).is_none() {
                let message = format!("lacks `{name}`: write `{{ replicas: 1, within: 5ms }}`");
                self.error(node.place, &path, message);
            }
        }
        let replicas = durable.get("replicas").and_then(|node| {
            let path = path.field("replicas");
            let text = self.text(node, &path)?;
            let most = u32::from(MOST_REPLICAS);
            let replicas = whole_number(text).filter(|number| (1..=most).contains(number));
            if replicas.is_none() {
                let message = format!("`{text}` is not a whole number from 1 to {most}");
                self.error(node.place, &path, message);
            }
            replicas
        });
        let within = durable.get("within").and_then(|node| {
            let path = path.field("within");
            let text = self.text(node, &path)?;
            let within = humantime::parse_duration(text).ok().and_then(whole_ms);
            if within.is_none() {
                let message =
                    format!("`{text}` is not a time from 1ms to 1s in whole milliseconds");
                self.error(node.place, &path, message);
            }
            within
        });
        Some(DurableFile {
            replicas: u8::try_from(replicas?).ok()?,
            within_ms: within?,
        })
    }
}

fn whole_ms(time: Duration) -> Option<u16> {
    let ms = u16::try_from(time.as_millis()).ok()?;
    let is_whole = Duration::from_millis(ms.into()) == time;
    (is_whole && (1..=1_000).contains(&ms)).then_some(ms)
}
