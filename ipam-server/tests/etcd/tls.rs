//! The etcd store over TLS, with certificates made here by openssl.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    change,
    etcd::{Member, config},
};
use weft_ipam::store::{
    Store,
    etcd::{ClientFiles, ConfigError, Etcd, Tls},
};

#[test]
fn both_sides_show_certificates_and_a_wrong_authority_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    for authority in ["ca", "stranger"] {
        make_authority(directory.path(), authority);
    }
    make_certificate(directory.path(), "ca", "server");
    make_certificate(directory.path(), "ca", "client");
    let text = |name: &str| at(name).display().to_string();
    let etcd = Member::start_tls(&[
        "--cert-file",
        &text("server.pem"),
        "--key-file",
        &text("server.key"),
        "--trusted-ca-file",
        &text("ca.pem"),
        "--client-cert-auth",
    ]);
    let client = || Some((at("client.pem"), at("client.key")));

    let mut good = store(&etcd, at("ca.pem"), client()).expect("readable files");
    good.load().expect("both are trusted");
    good.commit(&[change(1, 1, None)], &[]).expect("a new row");

    let mut deceived = store(&etcd, at("stranger.pem"), client()).expect("readable files");
    let text = deceived.load().expect_err("not trusted").to_string();
    assert!(text.contains("certificate"), "{text}");
    assert!(text.contains("name the authority"), "{text}");

    let mut nobody = store(&etcd, at("ca.pem"), None).expect("readable files");
    let text = nobody.load().expect_err("etcd asks who").to_string();
    assert!(text.contains("name a client certificate"), "{text}");

    let mixed = Some((at("client.pem"), at("server.key")));
    for (authority, client) in [
        (at("none.pem"), None),
        (at("ca.key"), None),
        (at("ca.pem"), mixed),
    ] {
        let error = store(&etcd, authority, client).err();
        assert!(matches!(error, Some(ConfigError::Tls { .. })), "{error:?}");
    }
}

fn store(
    etcd: &Member,
    authority: PathBuf,
    client: Option<(PathBuf, PathBuf)>,
) -> Result<Etcd, ConfigError> {
    let mut config = config(&[etcd.client]);
    config.tls = Some(Tls {
        authority: Some(authority),
        client: client.map(|(certificate, key)| ClientFiles { certificate, key }),
    });
    Etcd::new(config)
}

fn make_authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2"
        ),
    );
}

fn make_certificate(directory: &Path, authority: &str, name: &str) {
    std::fs::write(
        directory.join("extensions"),
        "subjectAltName=IP:127.0.0.1\n",
    )
    .expect("a writable directory");
    openssl(
        directory,
        &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"),
    );
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -out {name}.pem -days 2 -extfile extensions"
        ),
    );
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
}
