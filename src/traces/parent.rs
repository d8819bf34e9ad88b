//! Whose child a call's span is, by the headers of the call.
//!
//! Sources: W3C Trace Context, `traceparent` and `tracestate`; openzipkin/b3-propagation, `b3` and `x-b3-*`; OpenCensus' binary
//! form, `grpc-trace-bin`. The first that can be read counts. envoyproxy/ratelimit reads the first two.

use http::HeaderMap;
use opentelemetry::{
    Context,
    propagation::TextMapPropagator as _,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;

/// The context that the caller gave with the call; empty if none.
pub(super) fn of(headers: &HeaderMap) -> Context {
    let none = Context::new();
    let w3c = TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers));
    if w3c.has_active_span() {
        return w3c;
    }
    match b3(headers).or_else(|| binary(headers)) {
        Some(parent) if parent.is_valid() => none.with_remote_span_context(parent),
        _ => none,
    }
}

/// `b3: TRACE-SPAN-SAMPLED`, or the same in three headers. A caller that leaves the decision open has not kept its span.
fn b3(headers: &HeaderMap) -> Option<SpanContext> {
    let header = |name| headers.get(name)?.to_str().ok();
    let (trace, span, sampled) = match header("b3") {
        Some(all) => {
            let mut parts = all.split('-');
            (parts.next()?, parts.next()?, parts.next())
        }
        None => (
            header("x-b3-traceid")?,
            header("x-b3-spanid")?,
            match header("x-b3-flags") {
                Some("1") => Some("d"),
                _ => header("x-b3-sampled"),
            },
        ),
    };
    let sampled = matches!(sampled, Some("1" | "d" | "true"));
    // Of 16 digits or 32; the shorter ones are the lower half.
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let span = u64::from_str_radix(span, 16).ok()?;
    Some(remote(trace.to_be_bytes(), span.to_be_bytes(), sampled))
}

/// A version, then fields: 0 the trace, 1 the span, 2 the flags.
fn binary(headers: &HeaderMap) -> Option<SpanContext> {
    let metadata = MetadataMap::from_headers(
        headers
            .get("grpc-trace-bin")
            .map(|value| {
                (
                    http::HeaderName::from_static("grpc-trace-bin"),
                    value.clone(),
                )
            })
            .into_iter()
            .collect(),
    );
    let bytes = metadata.get_bin("grpc-trace-bin")?.to_bytes().ok()?;
    let rest = bytes.strip_prefix(&[0, 0])?;
    let (trace, rest) = rest.split_first_chunk::<16>()?;
    let (span, rest) = rest.strip_prefix(&[1])?.split_first_chunk::<8>()?;
    let sampled = rest.strip_prefix(&[2]).and_then(|flags| flags.first());
    Some(remote(
        *trace,
        *span,
        sampled.is_some_and(|flags| flags & 1 == 1),
    ))
}

fn remote(trace: [u8; 16], span: [u8; 8], sampled: bool) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(trace),
        SpanId::from_bytes(span),
        TraceFlags::default().with_sampled(sampled),
        true,
        TraceState::default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn parent(headers: &[(&'static str, String)]) -> Option<(String, String, bool)> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, value.parse::<http::HeaderValue>().unwrap())
            })
            .collect();
        let found = of(&headers);
        found.has_active_span().then(|| {
            let span = found.span().span_context().clone();
            assert!(span.is_remote());
            (
                span.trace_id().to_string(),
                span.span_id().to_string(),
                span.is_sampled(),
            )
        })
    }

    #[test]
    fn callers_are_known_by_every_form_of_their_headers() {
        let same = |sampled| Some((TRACE.to_owned(), SPAN.to_owned(), sampled));
        let w3c = |flags| ("traceparent", format!("00-{TRACE}-{SPAN}-{flags}"));
        assert_eq!(parent(&[w3c("01")]), same(true));
        assert_eq!(parent(&[w3c("00")]), same(false));
        assert_eq!(parent(&[("b3", format!("{TRACE}-{SPAN}-1"))]), same(true));
        assert_eq!(
            parent(&[("b3", format!("{TRACE}-{SPAN}-d-{SPAN}"))]),
            same(true)
        );
        assert_eq!(parent(&[("b3", format!("{TRACE}-{SPAN}"))]), same(false));
        let three = [
            ("x-b3-traceid", TRACE.to_owned()),
            ("x-b3-spanid", SPAN.to_owned()),
        ];
        assert_eq!(parent(&three), same(false));
        let [trace, span] = three;
        assert_eq!(
            parent(&[trace, span, ("x-b3-sampled", "1".to_owned())]),
            same(true)
        );
        // 00, 00 and the trace, 01 and the span, 02 and the flags, in base64.
        let binary = "AAAK92UZFs1D3YRI6yEcgDGcAbeta3FpIDMxAgE".to_owned();
        assert_eq!(parent(&[("grpc-trace-bin", binary)]), same(true));
    }

    #[test]
    fn what_cannot_be_read_is_no_parent() {
        let zeros = "0".repeat(32);
        for (name, value) in [
            ("traceparent", "00-zz-zz-01".to_owned()),
            ("traceparent", format!("00-{zeros}-{SPAN}-01")),
            ("b3", "0".to_owned()),
            ("b3", format!("{zeros}-{SPAN}-1")),
            ("b3", format!("{TRACE}{TRACE}-{SPAN}-1")),
            ("grpc-trace-bin", "AAAK92U".to_owned()),
            ("grpc-trace-bin", "no base64!".to_owned()),
        ] {
            assert_eq!(parent(&[(name, value.clone())]), None, "{name}: {value}");
        }
    }
}
