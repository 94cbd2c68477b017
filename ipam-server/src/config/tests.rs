use super::*;

#[test]
fn the_documented_file_is_good_and_tells_the_defaults() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ipam.toml");
    let documented = Config::load(Some(&page)).expect("it is good");
    let usual = Config::load(None).expect("the defaults are good");
    assert_eq!(documented.socket, usual.socket);
    assert_eq!(documented.access.mode, usual.access.mode);
    assert_eq!(documented.store, usual.store);
    assert_eq!(documented.limits, usual.limits);
    assert_eq!(documented.gc_grace, usual.gc_grace);
    assert_eq!(documented.pools.len(), 2);
}

#[test]
fn keys_of_etcd_must_fit_the_url_and_each_other() {
    let etcd = |url: &str, keys: &str| {
        let text = format!("store = \"{url}\"\n[etcd]\n{keys}");
        let file: File = toml::from_str(&text).expect("TOML");
        file.complete().and_then(|config| config.etcd())
    };
    etcd("etcd://127.0.0.1:2379", "").expect("nothing more is needed");
    for (url, keys, told) in [
        ("etcd://127.0.0.1:2379", "authority = \"/ca\"", "etcds://"),
        ("etcds://127.0.0.1:2379", "key = \"/key\"", "give both"),
        ("etcd://127.0.0.1:2379", "user = \"weft\"", "give both"),
        ("http://127.0.0.1:2379", "", "etcd://HOST:PORT"),
    ] {
        let refusal = etcd(url, keys).expect_err(told).to_string();
        assert!(refusal.contains(told), "{refusal}");
    }
}

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ipam.toml");
    fs::write(&path, text).expect("a file");
    Config::load(Some(&path)).map_err(|error| error.to_string())
}

#[test]
fn every_key_has_a_default() {
    let (file, none) = (load("").expect("empty"), Config::load(None).expect("none"));
    assert_eq!(file.limits, none.limits);
    assert_eq!(file.limits, Limits::default());
    assert_eq!(file.access, Access::default());
    assert_eq!(file.socket, Path::new(SOCKET_DEFAULT));
    assert_eq!((file.store.as_str(), file.pools.len()), (STORE_DEFAULT, 0));
}

#[test]
fn all_keys_are_taken() {
    let text = "store = 'x.redb'\ngc_grace_seconds = 6\n\
        [socket]\npath = '/x'\nmode = '0660'\nowner = 'root'\ngroup = '7'\nuids = [1]\ngids = [2]\n\
        [etcd]\nuser = 'u'\npassword_file = '/p'\nauthority = '/a'\ncertificate = '/c'\nkey = '/k'\n\
        [limits]\nclients = 1\nrequests = 2\nbatch = 3\ndeadline_seconds = 4\nwatch_backlog_bytes = 5\n\
        [[pool]]\nname = 'a'\ncidr = '10.0.0.0/24'\n";
    let config = load(text).expect("all are known");
    let access = Access {
        mode: 0o660,
        owner: Some(0),
        group: Some(7),
        uids: vec![1],
        gids: vec![2],
    };
    let limits = Limits {
        clients: 1,
        requests: 2,
        batch: 3,
        deadline: Duration::from_secs(4),
        backlog: 5,
    };
    assert_eq!((config.access, config.limits), (access, limits));
    assert_eq!(config.gc_grace, Duration::from_secs(6));
    assert_eq!((config.store.as_str(), config.pools.len()), ("x.redb", 1));
    assert_eq!(config.etcd.user.as_deref(), Some("u"));
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let table = [
        ("colour = 1", "line 1"),
        ("store = 'x'\nstore = 'y'", "line 2"),
        ("\n[socket\n", "line 2"),
        ("[socket]\nmode = 432", "line 2"),
        ("[socket]\n\nuids = ['root']", "line 3"),
        ("[etcd]\npassword = 'x'", "line 2"),
        ("[limits]\nclients = -1", "line 2"),
        ("[[pool]]\nname = 'a'\ncidr = '10.0.0.0/33'", "line 3"),
        ("[[pool]]\nname = 'a'", "cidr"),
        ("[socket]\nmode = '0999'", "socket.mode"),
        ("[socket]\nmode = '1777'", "socket.mode"),
        ("[socket]\nowner = 'no such user'", "socket.owner"),
        ("[socket]\ngroup = 'no such group'", "socket.group"),
        ("gc_grace_seconds = 0", "gc_grace_seconds"),
        ("[limits]\nclients = 0", "limits.clients"),
        ("[limits]\nrequests = 65537", "limits.requests"),
        ("[limits]\nbatch = 0", "limits.batch"),
        ("[limits]\ndeadline_seconds = 0", "limits.deadline_seconds"),
        (
            "[limits]\ndeadline_seconds = 3601",
            "limits.deadline_seconds",
        ),
        (
            "[limits]\nwatch_backlog_bytes = 0",
            "limits.watch_backlog_bytes",
        ),
    ];
    for (text, place) in table {
        let told = load(text).expect_err(text);
        assert!(told.contains(place), "{text}: {told}");
    }
    let missing = Config::load(Some(Path::new("/nowhere/ipam.toml")));
    let told = missing.expect_err("no file").to_string();
    assert!(told.contains("/nowhere/ipam.toml"), "{told}");
}
