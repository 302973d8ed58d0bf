use super::wire;
use super::*;
use crate::error::{Result, code};
use crate::kobject::tree::{Entry, EntryKind, Tree, TreeOps};
use crate::kobject::{Attr, Inline, Kobject};
use crate::net::LocalStream;
use crate::sync::{Arc, SpinLock};
use proptest::prelude::*;

struct Setup {
    dir: tempfile::TempDir,
    root: Arc<Kobject>,
    server: Server,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let root = Kobject::root("root", Arc::new(Inline));
    let value = Arc::new(SpinLock::new("0\n".to_owned()));
    let (v, w) = (Arc::clone(&value), value);
    let store = move |t: &str| {
        t.trim().parse::<u32>().map_err(|_| code::EINVAL)?;
        *w.lock() = t.to_owned();
        Ok(())
    };
    let sub = root.add("sub").unwrap();
    sub.add_attr(Attr::rw("n", move || Ok(v.lock().clone()), store))
        .unwrap();
    root.add_link("link", &sub).unwrap();
    let fuse = |_| Err(code::EMFILE);
    let server = Server::start(&dir.path().join("c"), Tree::new(&root), fuse, None).unwrap();
    Setup { dir, root, server }
}

fn client(s: &Setup) -> Client {
    Client::connect(s.server.path()).unwrap()
}

#[test]
fn a_client_does_what_the_tree_does() {
    let s = setup();
    let (remote, local) = (client(&s), Tree::new(&s.root));
    assert_eq!(remote.write("sub/n", b"17\n"), Ok(()));
    assert_eq!(remote.read("link/n").unwrap(), b"17\n");
    assert_eq!(remote.write("sub/n", b"x"), Err(code::EINVAL));
    for path in ["", "sub", "sub/n", "link", "nothing", "sub/n/x"] {
        assert_eq!(remote.list(path), local.list(path), "{path}");
        assert_eq!(remote.stat(path), local.stat(path), "{path}");
        assert_eq!(remote.read(path), local.read(path), "{path}");
        assert_eq!(remote.readlink(path), local.readlink(path), "{path}");
    }
    let long = "x/".repeat(40_000);
    assert_eq!(remote.read(&long), Err(code::E2BIG));
    assert_eq!(remote.write(&long, b"1"), Err(code::ENAMETOOLONG));
    assert_eq!(remote.write("sub/n", &[b' '; 5000]), Err(code::E2BIG));
    assert_eq!(
        remote.serve_fuse(std::os::fd::AsFd::as_fd(&std::io::stderr())),
        Err(code::EMFILE)
    );
    assert_eq!(remote.read("sub/n").unwrap(), b"17\n", "the client goes on");
}

#[test]
fn the_end_of_the_server_ends_its_clients() {
    let s = setup();
    let (a, b) = (client(&s), client(&s));
    assert!(a.read("sub/n").is_ok());
    let path = s.server.path().to_owned();
    drop(s.server);
    assert!(a.read("sub/n").is_err());
    assert_eq!(a.read("sub/n"), Err(code::ENOTCONN));
    assert!(b.list("").is_err());
    assert_eq!(Client::connect(&path).unwrap_err(), code::ENOENT);
    drop(s.dir);
}

#[test]
fn too_many_clients_are_refused() {
    let s = setup();
    let mut some: Vec<Client> = (0..MAX_CLIENTS).map(|_| client(&s)).collect();
    assert_eq!(Client::connect(s.server.path()).unwrap_err(), code::EAGAIN);
    some.pop();
    // Its thread ends on its own.
    while let Err(e) = Client::connect(s.server.path()) {
        assert_eq!(e, code::EAGAIN);
    }
    assert!(some[0].read("sub/n").is_ok());
}

#[test]
fn strangers_are_turned_away() {
    let s = setup();
    let stream = LocalStream::connect(s.server.path()).unwrap();
    stream.send(b"KOBJCTL\x09", None).unwrap();
    let mut welcome = [0; wire::WELCOME_LEN];
    stream.recv_exact(&mut welcome).unwrap();
    assert_eq!(wire::check_welcome(welcome), Err(code::EPROTO));

    let stream = LocalStream::connect(s.server.path()).unwrap();
    stream.send(&wire::hello(), None).unwrap();
    stream.recv_exact(&mut welcome).unwrap();
    stream.send(&[0xff; wire::REQUEST_HEAD], None).unwrap();
    assert!(
        stream.recv_exact(&mut welcome).is_err(),
        "too long a request"
    );

    let stream = LocalStream::connect(s.server.path()).unwrap();
    stream.send(&wire::hello(), None).unwrap();
    stream.recv_exact(&mut welcome).unwrap();
    stream.send(&[0, 0, 0, 0, 99, 0, 1, 0], None).unwrap();
    let mut reply = [0; wire::REPLY_HEAD];
    stream.recv_exact(&mut reply).unwrap();
    let reply = wire::ReplyHead::parse(reply).unwrap();
    assert_eq!((reply.op, reply.tag), (99, 1));
    assert_eq!(reply.result, Err(code::EOPNOTSUPP));
}

/// Says everything back, twice; ends what it was asked to end.
struct Echo {
    sink: Sink,
    ended: Arc<SpinLock<u32>>,
}

impl Extension for Echo {
    fn execute(&mut self, op: u8, body: &[u8]) -> Result<Vec<u8>> {
        self.sink.send(op, body)?;
        if body.is_empty() {
            return Err(code::ENODATA);
        }
        Ok(body.to_vec())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        *self.ended.lock() += 1;
    }
}

#[test]
fn an_extension_answers_and_tells() {
    let dir = tempfile::tempdir().unwrap();
    let root = Kobject::root("root", Arc::new(Inline));
    let ended = Arc::new(SpinLock::new(0));
    let count = Arc::clone(&ended);
    let open: OpenExtension = Box::new(move |sink| {
        let ended = Arc::clone(&count);
        Ok(Box::new(Echo { sink, ended }))
    });
    let fuse = |_| Err(code::EMFILE);
    let path = dir.path().join("c");
    let server = Server::start(&path, Tree::new(&root), fuse, Some(open)).unwrap();
    let channel = Channel::connect(&path).unwrap();
    channel.send(wire::Op::List as u8, 1, b"").unwrap();
    let tree = channel.recv().unwrap();
    assert_eq!((tree.op, tree.tag, tree.result), (1, 1, Ok(Vec::new())));
    channel.send(FIRST_EXTENSION_OP, 7, b"hello").unwrap();
    for tag in [PUSH_TAG, 7] {
        let got = channel.recv().unwrap();
        let result = Ok(b"hello".to_vec());
        assert_eq!(
            got,
            Message {
                op: FIRST_EXTENSION_OP,
                tag,
                result
            }
        );
    }
    channel.send(200, 8, b"").unwrap();
    assert_eq!(channel.recv().unwrap().result, Ok(Vec::new()));
    assert_eq!(channel.recv().unwrap().result, Err(code::ENODATA));
    assert_eq!(*ended.lock(), 0, "one extension for the connection");
    drop(server);
    assert_eq!(*ended.lock(), 1);
    assert_eq!(channel.recv().unwrap_err(), code::ENOTCONN);
}

fn arb_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        Just(EntryKind::Dir),
        Just(EntryKind::File),
        Just(EntryKind::Link)
    ];
    ("[a-z0-9:.]{0,40}", kind, any::<u16>()).prop_map(|(name, kind, mode)| Entry {
        name,
        kind,
        mode,
    })
}

proptest! {
    #[test]
    fn entries_come_back(list in proptest::collection::vec(arb_entry(), 0..20)) {
        let bytes = wire::entries(&list).unwrap();
        prop_assert_eq!(wire::parse_entries(&bytes).unwrap(), list);
    }

    #[test]
    fn no_bytes_hurt_the_parsers(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _: Result<Vec<Entry>> = wire::parse_entries(&bytes);
        let _: Result<(&str, &[u8])> = wire::parse_write(&bytes);
        if let Some(head) = bytes.first_chunk() {
            let fits = |h: wire::RequestHead| h.len <= wire::MAX_REQUEST;
            prop_assert!(wire::RequestHead::parse(*head).map_or(true, fits));
        }
    }
}
