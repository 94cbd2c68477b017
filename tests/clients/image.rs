//! An image of one layer with busybox in it, as `docker save` writes it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

pub const NAME: &str = "docker.io/library/weft-test:latest";
pub const BUSYBOX: &str = "busybox";

const APPLETS: [&str; 6] = ["sh", "ping", "nc", "ip", "sleep", "cat"];

/// Packs the image in `dir`.
pub fn pack(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    run(
        "sh",
        &[
            "-c",
            "cp \"$(command -v busybox)\" \"$0\"",
            &text(&root.join("bin")),
        ],
    );
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("written");
    let layer = dir.join("layer.tar");
    tar(&layer, &root, ".");
    let sum = run("sha256sum", &[&text(&layer)]);
    let digest = sum.split_whitespace().next().expect("a digest");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"],
    }]);
    fs::write(dir.join("config.json"), config.to_string()).expect("written");
    fs::write(dir.join("manifest.json"), manifest.to_string()).expect("written");
    let image = dir.join("image.tar");
    tar(&image, dir, "config.json layer.tar manifest.json");
    image
}

fn tar(archive: &Path, folder: &Path, what: &str) {
    let (archive, folder) = (text(archive), text(folder));
    let mut words = vec!["--owner=0", "--group=0", "-cf", &archive, "-C", &folder];
    words.extend(what.split(' '));
    run("tar", &words);
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of letters").to_owned()
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().expect(program);
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}
