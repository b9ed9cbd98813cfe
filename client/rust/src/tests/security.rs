//! TLS, mutual TLS and tokens.

use std::env::temp_dir;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::unbounded_channel;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::scripted::{Script, serve_with};
use super::soon;
use crate::client::{Client, tls_from_files};
use crate::proto::HeartbeatRequest;

/// A certificate that signs itself, for both sides, and its key, in files that go with it.
struct Files {
    folder: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn write(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
        let folder = temp_dir().join(format!("lightningstore-{name}-{}", std::process::id()));
        let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Self { folder, certificate, key }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn mutual_tls_and_a_token() {
    let files = Files::write("mutual");
    let (certificate, key) = (fs::read(&files.certificate).unwrap(), fs::read(&files.key).unwrap());
    let of_server = ServerTlsConfig::new()
        .identity(Identity::from_pem(&certificate, key))
        .client_ca_root(Certificate::from_pem(&certificate));
    let tls = tls_from_files(Some(&files.certificate), Some((&files.certificate, &files.key))).unwrap();
    let connect = |address: std::net::SocketAddr| {
        Client::builder().address(address.to_string()).tls(tls).token("secret").build().unwrap()
    };
    let (shown, mut tokens) = unbounded_channel();
    let world =
        serve_with(|_| Script { metadata: Some(shown), ..Default::default() }, Some(of_server), connect);
    let beat = || HeartbeatRequest { worker_id: "w".into(), ..Default::default() };
    soon(world.client.call(beat())).await.unwrap();
    let metadata = super::next(&mut tokens).await;
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer secret");

    let plain = Client::new(world.address.to_string()).unwrap();
    soon(plain.call(beat())).await.unwrap_err();
    let address = format!("https://{}", world.address);
    let nameless = tls_from_files(Some(&files.certificate), None).unwrap();
    let nameless = Client::builder().address(&address).tls(nameless).build().unwrap();
    soon(nameless.call(beat())).await.unwrap_err();
    let stranger = Client::new(address).unwrap(); // trusts the system's authorities, not this one
    let error = soon(stranger.call(beat())).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn files_that_are_no_certificates_are_refused() {
    let files = Files::write("wrong");
    let Files { certificate, key, .. } = &files;
    let missing = Path::new("missing.pem");
    let broken = files.folder.join("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    for (authorities, identity) in [
        (Some(key.as_path()), None),
        (Some(missing), None),
        (Some(&broken), None),
        (None, Some((certificate.as_path(), certificate.as_path()))),
        (None, Some((key, certificate))),
        (None, Some((certificate, missing))),
    ] {
        let error = tls_from_files(authorities, identity).unwrap_err();
        assert!(error.to_string().starts_with("TLS: "), "{error}");
    }
}
