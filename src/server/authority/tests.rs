//! Held to h2, which decodes what comes through, and to an encoder that uses all that RFC 7541 allows.

use std::collections::VecDeque;

use octets::OctetsMut;
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const ISTIO: &str = "outbound|8081||ratelimit.default.svc.cluster.local";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Field = (String, String);

/// How a field is written that is in no table.
#[derive(Debug, Clone, Copy)]
struct Style {
    /// The bits before the index of the name, and how many are left for it: to be indexed, not to be, never to be.
    representation: (u8, u32),
    huffman: bool,
    name_by_index: bool,
}

fn styles() -> impl Strategy<Value = Style> {
    let representations =
        prop_oneof![4 => Just((0x40, 6)), 1 => Just((0x00, 4)), 1 => Just((0x10, 4))];
    (representations, any::<bool>(), any::<bool>()).prop_map(
        |(representation, huffman, name_by_index)| Style {
            representation,
            huffman,
            name_by_index,
        },
    )
}

const INDEXED: Style = Style {
    representation: (0x40, 6),
    huffman: true,
    name_by_index: true,
};

/// A client's side of HPACK.
#[derive(Debug, Default)]
struct Encoder {
    table: VecDeque<Field>,
    size: usize,
}

impl Encoder {
    fn block(&mut self, fields: &[Field], styles: &[Style]) -> Vec<u8> {
        let mut block = Vec::new();
        for (field, style) in fields.iter().zip(styles.iter().cycle()) {
            self.field(field, *style, &mut block);
        }
        block
    }

    fn field(&mut self, field: &Field, style: Style, into: &mut Vec<u8>) {
        if let Some(place) = self.table.iter().position(|known| known == field) {
            return integer(62 + place, (0x80, 7), into);
        }
        let known = self.table.iter().position(|(name, _)| *name == field.0);
        let index = match field.0.as_str() {
            ":authority" => 1,
            ":method" => 2,
            ":path" => 4,
            ":scheme" => 6,
            "content-type" => 31,
            _ => known.map_or(0, |place| 62 + place),
        };
        if style.name_by_index && index > 0 {
            integer(index, style.representation, into);
        } else {
            integer(0, style.representation, into);
            string(&field.0, style.huffman, into);
        }
        string(&field.1, style.huffman, into);
        if style.representation.0 == 0x40 {
            self.keep(field);
        }
    }

    fn keep(&mut self, field: &Field) {
        self.table.push_front(field.clone());
        self.size += size(field);
        while self.size > 4_096 {
            self.size -= size(&self.table.pop_back().expect("it has a size"));
        }
    }
}

fn size((name, value): &Field) -> usize {
    name.len() + value.len() + 32
}

fn integer(value: usize, (first, bits): (u8, u32), into: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    if value < most {
        return into.push(first | value as u8);
    }
    into.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        into.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    into.push(rest as u8);
}

fn string(text: &str, huffman: bool, into: &mut Vec<u8>) {
    let mut octets = text.as_bytes().to_vec();
    if huffman {
        // The longest code has 30 bits.
        octets = vec![0; 4 * text.len()];
        let mut writer = OctetsMut::with_slice(&mut octets);
        writer
            .put_huffman_encoded::<false>(text.as_bytes())
            .expect("there is room");
        let length = writer.off();
        octets.truncate(length);
    }
    integer(octets.len(), (if huffman { 0x80 } else { 0 }, 7), into);
    into.extend(octets);
}

/// A frame of `kind` on `stream`.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The end of a stream and of its fields; with padding and a priority if wanted.
fn headers(stream: u32, block: &[u8], padded: bool, priority: bool) -> Vec<u8> {
    let (mut flags, mut payload) = (0x5, Vec::new());
    if padded {
        flags |= 0x8;
        payload.push(7);
    }
    if priority {
        flags |= 0x20;
        payload.extend([0, 0, 0, 0, 15]);
    }
    payload.extend(block);
    if padded {
        payload.extend([0; 7]);
    }
    frame(0x1, flags, stream, &payload)
}

fn opening() -> Vec<u8> {
    [PREFACE, &frame(0x4, 0, 0, &[])].concat()
}

fn fields(authority: &str, more: &[Field]) -> Vec<Field> {
    let mut fields: Vec<Field> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/service/Method"),
        (":authority", authority),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    fields.extend(more.iter().cloned());
    fields
}

/// One request on a connection of its own, as most encoders write it.
fn lone(authority: &str) -> Vec<u8> {
    let block = Encoder::default().block(&fields(authority, &[]), &[INDEXED]);
    [opening(), headers(1, &block, false, false)].concat()
}

/// What is read of `bytes` when they come in pieces cut at these places.
fn through(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts = cuts.to_vec();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let mut frames = Frames::new();
    let mut read = Vec::new();
    for piece in cuts.windows(2) {
        let piece = &bytes[piece[0]..piece[1]];
        let passed = frames.push(piece);
        read.extend_from_slice(&piece[..passed]);
        read.extend_from_slice(frames.ready());
        frames.advance(frames.ready().len());
    }
    frames.end();
    read.extend_from_slice(frames.ready());
    read
}

/// What h2 makes of the requests on a connection: authority and other fields. None for one whose stream it resets.
async fn served(bytes: Vec<u8>, count: usize, room: usize) -> Vec<(String, Vec<Field>)> {
    let (theirs, ours) = duplex(room);
    let (answers, mut calls) = tokio::io::split(theirs);
    let calling = async move {
        let (called, ()) = tokio::join!(calls.write_all(&bytes), answered(answers, count));
        called.expect("it reads all");
    };
    let serving = async {
        let mut requests = Vec::new();
        let mut connection = h2::server::handshake(AnyAuthority::new(ours))
            .await
            .expect("HTTP/2");
        while let Some(accepted) = connection.accept().await {
            let (request, mut answer) = accepted.expect("a request");
            answer
                .send_response(http::Response::new(()), true)
                .expect("it can be answered");
            let name = request.uri().authority().expect("a name").to_string();
            let fields = request.headers().iter();
            let fields =
                fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            requests.push((name, fields.collect()));
        }
        requests
    };
    tokio::join!(calling, serving).1
}

/// Completes when `count` streams have ended, by an answer or a reset.
async fn answered(mut frames: impl AsyncRead + Unpin, count: usize) {
    let mut ended = 0;
    while ended < count {
        let mut head = [0; 9];
        frames.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        frames.read_exact(&mut payload).await.expect("all of it");
        ended += usize::from([0x1, 0x3].contains(&head[3]));
        assert_ne!(head[3], 0x7, "it goes away: {payload:?}");
    }
}

/// What h2 reads where a client says that.
fn mended(name: &str) -> String {
    if name.parse::<http::uri::Authority>().is_ok() {
        return name.to_owned();
    }
    let octets = name.bytes().map(char::from);
    octets
        .map(|octet| match octet {
            '.' | '_' => octet,
            octet if octet.is_ascii_alphanumeric() => octet,
            _ => '-',
        })
        .collect()
}

#[tokio::test]
async fn h2_answers_names_that_are_no_authority() {
    for (name, read) in [
        (ISTIO, "outbound-8081--ratelimit.default.svc.cluster.local"),
        ("rate limit/eu", "rate-limit-eu"),
        ("%2Frun%2Frls.sock", "-2Frun-2Frls.sock"),
        ("ratelimit:8081", "ratelimit:8081"),
        ("[::1]:8081", "[::1]:8081"),
        ("a:b:c", "a-b-c"),
        ("naïve", "na--ve"),
    ] {
        let requests = served(lone(name), 1, 64 * 1024).await;
        let names: Vec<_> = requests.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [read], "{name}");
    }
}

#[tokio::test]
async fn a_call_is_read_wherever_it_is_cut() {
    let bytes = lone(ISTIO);
    let whole = through(&bytes, &[]);
    for cut in 0..=bytes.len() {
        assert_eq!(through(&bytes, &[cut]), whole, "cut at {cut}");
    }
    let all: Vec<_> = (0..bytes.len()).collect();
    assert_eq!(through(&bytes, &all), whole);
    // The socket and h2's buffer are as small as can be.
    let requests = served(bytes, 1, 1).await;
    assert_eq!(requests[0].0, mended(ISTIO));
}

#[test]
fn good_names_pass_where_they_are() {
    let mut encoder = Encoder::default();
    let mut frames = Frames::new();
    let bytes = opening();
    assert_eq!(frames.push(&bytes), bytes.len());
    for stream in [1, 3, 5] {
        let block = encoder.block(&fields("ratelimit.example:8081", &[]), &[INDEXED]);
        let bytes = headers(stream, &block, false, false);
        assert_eq!(frames.push(&bytes), bytes.len());
    }
}

#[test]
fn what_is_no_http2_passes_at_once() {
    for bytes in [
        &b"PRIVATE"[..],
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE,
    ] {
        assert_eq!(Frames::new().push(bytes), bytes.len());
    }
}

#[test]
fn what_cannot_be_changed_passes_as_it_is() {
    let opening = opening();
    // No literal, an empty one, no block, and a name that is too long without Huffman codes.
    let mut packed = vec![0x41];
    string(&"/".repeat(21_000), true, &mut packed);
    assert!(packed.len() < 16 * 1024);
    for block in [&[0x81][..], &[0x41, 0], &[], &[0x41], &[0xff; 9], &packed] {
        let bytes = [&opening[..], &headers(1, block, false, false)].concat();
        assert_eq!(through(&bytes, &[]), bytes);
    }
    // More padding than payload, and a frame that is longer than h2 takes.
    let wrong = frame(0x1, 0xd, 1, &[9, 0x41, 1, b'|']);
    let long = frame(
        0x1,
        0x5,
        1,
        &[[0x41, 1, b'|'].as_slice(), &[0x82; 16_384]].concat(),
    );
    for frame in [wrong, long] {
        let bytes = [&opening[..], &frame].concat();
        assert_eq!(through(&bytes, &[]), bytes);
    }
}

#[tokio::test]
async fn fields_may_go_on_in_another_frame() {
    let mut encoder = Encoder::default();
    let mut bytes = opening();
    for stream in [1, 3] {
        let more = [("x-more".to_owned(), format!("{stream}").repeat(300))];
        let block = encoder.block(&fields(ISTIO, &more), &[INDEXED]);
        let (first, rest) = block.split_at(block.len() - 100);
        bytes.extend(frame(0x1, 0x1, stream, first));
        bytes.extend(frame(0x9, 0x4, stream, rest));
    }
    let requests = served(bytes, 2, 64 * 1024).await;
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|(name, _)| *name == mended(ISTIO)));
}

/// A request.
#[derive(Debug, Clone)]
struct Call {
    /// Which of the client's names for us it says.
    name: Index,
    /// Of few names and many values.
    fields: Vec<Field>,
    styles: Vec<Style>,
    padded: bool,
    priority: bool,
    /// The payload of a frame of unknown kind after it.
    after: Vec<u8>,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let name = prop_oneof!["x-[ab]", Just("content-type".to_owned())];
    let value = prop_oneof!["[a-z]{1}", "[ -~&&[^ ]]{1,30}", "[a-zA-Z0-9]{400,700}"];
    let call = (
        any::<Index>(),
        vec((name, value), 0..6),
        vec(styles(), 1..8),
        any::<[bool; 2]>(),
        vec(any::<u8>(), 0..40),
    );
    let call = call.prop_map(|(name, fields, styles, [padded, priority], after)| Call {
        name,
        fields,
        styles,
        padded,
        priority,
        after,
    });
    vec(call, 1..60)
}

/// The connection on which a client makes these calls.
fn connection(names: &[String], calls: &[Call]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = opening();
    for (turn, call) in calls.iter().enumerate() {
        let fields = fields(&names[call.name.index(names.len())], &call.fields);
        let block = encoder.block(&fields, &call.styles);
        let stream = 2 * turn as u32 + 1;
        bytes.extend(headers(stream, &block, call.padded, call.priority));
        bytes.extend(frame(0xbe, 0x5, 0, &call.after));
    }
    bytes
}

fn good_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9._-]{1,40}(:[0-9]{1,4})?",
        Just("[2001:db8::1]:8081".to_owned())
    ]
}

fn bad_name() -> impl Strategy<Value = String> {
    let bad = prop_oneof!["[|/ ]", "%2F", "é"];
    ("[!-~ ]{0,60}", bad, "[!-~]{0,300}").prop_map(|(before, bad, after)| before + &bad + &after)
}

fn cut(bytes: &[u8], cuts: &[Index]) -> Vec<u8> {
    let cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
    through(bytes, &cuts)
}

/// In an order of names; HTTP's map keeps that of one name's values only.
fn sorted(mut fields: Vec<Field>) -> Vec<Field> {
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn good_names_pass_octet_for_octet(
        names in vec(good_name(), 1..4),
        calls in calls(),
        cuts in vec(any::<Index>(), 0..50),
    ) {
        let bytes = connection(&names, &calls);
        prop_assert!(cut(&bytes, &cuts) == bytes);
    }

    #[test]
    fn h2_reads_every_field_beside_names_that_are_no_authority(
        names in vec(prop_oneof![good_name(), bad_name()], 1..4),
        calls in calls(),
        cuts in vec(any::<Index>(), 0..50),
        room in 1..9_000usize,
    ) {
        let bytes = connection(&names, &calls);
        prop_assert!(cut(&bytes, &cuts) == through(&bytes, &[]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let requests = runtime.block_on(served(bytes, calls.len(), room));
        prop_assert_eq!(requests.len(), calls.len());
        for ((read, fields), call) in requests.into_iter().zip(calls) {
            prop_assert_eq!(read, mended(&names[call.name.index(names.len())]));
            prop_assert_eq!(sorted(fields), sorted(call.fields));
        }
    }

    #[test]
    fn any_octets_pass_or_are_renamed_wherever_they_are_cut(
        frames in vec((prop_oneof![Just(1u8), any::<u8>()], any::<u8>(), vec(any::<u8>(), 0..80)), 0..8),
        rest in vec(any::<u8>(), 0..40),
        cuts in vec(any::<Index>(), 0..20),
    ) {
        let mut bytes = opening();
        for (kind, flags, payload) in frames {
            bytes.extend(frame(kind, flags, 1, &payload));
        }
        bytes.extend(rest);
        prop_assert!(cut(&bytes, &cuts) == through(&bytes, &[]));
    }
}
