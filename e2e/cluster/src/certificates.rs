//! The cluster's certificate authority and what it signs, and the kubeconfig files that carry it.
//!
//! A certificate says who its holder is by its subject: the common name is the user, the
//! organisation the group.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// The group whose members may do everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// Signs certificates, and puts them into one folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Debug)]
pub struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    /// Makes a new authority; `folder` gets `ca.crt` and `ca.key`.
    ///
    /// # Errors
    /// When no key can be made or the folder cannot be written.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let key = KeyPair::generate().context("make the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "portolan-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).context("sign the authority")?.pem();
        write_secret(&folder.join("ca.crt"), &pem)?;
        write_secret(&folder.join("ca.key"), &key.serialize_pem())?;
        Ok(Self { folder: folder.to_path_buf(), pem, issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Signs a client's certificate.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self, user: &str, group: Option<&str>) -> anyhow::Result<Identity> {
        self.sign(user, group, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Signs a server's certificate for host names and addresses, and writes it to `NAME.crt` and
    /// `NAME.key`.
    ///
    /// # Errors
    /// When a name is no host name, no key can be made, or the folder cannot be written.
    pub fn server(&self, name: &str, hosts: &[String]) -> anyhow::Result<()> {
        self.sign(name, None, hosts, ExtendedKeyUsagePurpose::ServerAuth)
            .and_then(|identity| self.write(name, &identity))
    }

    /// Writes an identity to `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, name: &str, identity: &Identity) -> anyhow::Result<()> {
        write_secret(&self.folder.join(format!("{name}.crt")), &identity.certificate)?;
        write_secret(&self.folder.join(format!("{name}.key")), &identity.key)
    }

    /// Makes the keys that sign service account tokens: `tokens.key` and `tokens.pub`.
    ///
    /// # Errors
    /// When no key can be made or the folder cannot be written.
    pub fn token_keys(&self) -> anyhow::Result<()> {
        let key = KeyPair::generate().context("make the key of the tokens")?;
        write_secret(&self.folder.join("tokens.key"), &key.serialize_pem())?;
        write_secret(&self.folder.join("tokens.pub"), &key.public_key_pem())
    }

    /// Writes a kubeconfig in which `identity` speaks to the API server at `server`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, path: &Path, server: &str, identity: &Identity) -> anyhow::Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "portolan",
            "clusters": [{ "name": "portolan", "cluster": {
                "server": server,
                "certificate-authority-data": base64(&self.pem),
            }}],
            "users": [{ "name": "portolan", "user": {
                "client-certificate-data": base64(&identity.certificate),
                "client-key-data": base64(&identity.key),
            }}],
            "contexts": [{ "name": "portolan", "context": {
                "cluster": "portolan", "user": "portolan", "namespace": "default",
            }}],
        });
        write_secret(path, &format!("{config:#}\n"))
    }

    fn sign(
        &self,
        user: &str,
        group: Option<&str>,
        hosts: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<Identity> {
        let key = KeyPair::generate().with_context(|| format!("make the key of {user}"))?;
        let mut params =
            CertificateParams::new(hosts.to_vec()).with_context(|| format!("name {user}"))?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("sign {user}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Writes a file that only its owner reads.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

fn base64(text: &str) -> String {
    data_encoding::BASE64.encode(text.as_bytes())
}
