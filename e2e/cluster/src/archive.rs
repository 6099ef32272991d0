//! Image archives in the OCI layout, written without any container tool.
//!
//! An image is one layer: a program, the shared libraries it loads, and the few files a program
//! expects of a system. The same inputs give the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command;

/// The user that our images run as: a common choice for "nobody in particular".
pub const NONROOT: u32 = 65532;

/// What an image holds and how it starts.
#[derive(Debug)]
pub struct Image {
    /// The full name: `docker.io/portolan/NAME:dev`.
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    env: Vec<String>,
}

#[derive(Debug)]
enum Entry {
    Folder { mode: u32 },
    Text { text: String },
    Copy { source: PathBuf, mode: u32 },
    Link { target: PathBuf },
}

impl Image {
    /// An image with nothing but the files every program may look for.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let passwd = format!(
            "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/tmp:/sbin/nologin\n"
        );
        let group = format!("root:x:0:\nnonroot:x:{NONROOT}:\n");
        let mut image = Self {
            name: format!("docker.io/portolan/{name}:dev"),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()],
        };
        image.folder("/tmp", 0o1777);
        image.text("/etc/passwd", &passwd);
        image.text("/etc/group", &group);
        image.text("/etc/nsswitch.conf", "hosts: files dns\n");
        image
    }

    /// The full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.entries.insert(path.into(), Entry::Folder { mode });
    }

    /// Adds a file with this text.
    pub fn text(&mut self, path: &str, text: &str) {
        self.entries.insert(path.into(), Entry::Text { text: text.to_owned() });
    }

    /// Adds a copy of a file of this machine.
    pub fn copy(&mut self, source: &Path, path: impl Into<PathBuf>, mode: u32) {
        self.entries.insert(path.into(), Entry::Copy { source: source.to_path_buf(), mode });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entries.insert(path.into(), Entry::Link { target: target.into() });
    }

    /// Adds a program with every shared library it loads.
    ///
    /// # Errors
    /// When a library is missing on this machine.
    pub fn program(&mut self, source: &Path, path: &str) -> anyhow::Result<()> {
        self.copy(source, path, 0o755);
        for library in libraries(source, None)? {
            self.copy(&library.clone(), library, 0o755);
        }
        Ok(())
    }

    /// As [`Image::program`], for a program of packages unpacked into `root`, under its path there.
    /// A library that is among them is taken from there, any other from this machine.
    ///
    /// # Errors
    /// When a library that the program needs is in neither.
    pub fn unpacked_program(&mut self, root: &Path, program: &str) -> anyhow::Result<()> {
        let source = root.join(program);
        self.copy(&source, format!("/{program}"), 0o755);
        for library in libraries(&source, Some(root))? {
            let path = library.strip_prefix(root).map(|inside| Path::new("/").join(inside));
            self.copy(&library, path.unwrap_or_else(|_| library.clone()), 0o755);
        }
        Ok(())
    }

    /// Sets what the container runs.
    pub fn entrypoint(&mut self, words: &[&str]) {
        self.entrypoint = words.iter().map(ToString::to_string).collect();
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a source cannot be read or the archive cannot be written.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let draft = archive.with_extension("draft");
        let layer_file = archive.with_extension("layer");
        let layer = self.write_layer(&layer_file)?;
        let config = self.config(&layer).to_string();
        let config_blob = Blob::of(config.as_bytes());
        let manifest = manifest(&config_blob, &layer).to_string();
        let manifest_blob = Blob::of(manifest.as_bytes());
        let index = self.index(&manifest_blob).to_string();

        let file = File::create(&draft).with_context(|| format!("make {}", draft.display()))?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", index.as_bytes())?;
        append(&mut tar, &manifest_blob.path(), manifest.as_bytes())?;
        append(&mut tar, &config_blob.path(), config.as_bytes())?;
        let content = File::open(&layer_file).context("open the layer")?;
        tar.append_data(&mut header(layer.size, 0o644), layer.path(), content)
            .context("write the layer")?;
        tar.into_inner().and_then(|mut out| out.flush()).context("end the archive")?;
        fs::remove_file(&layer_file).context("remove the layer's draft")?;
        fs::rename(&draft, archive).with_context(|| format!("place {}", archive.display()))
    }

    fn write_layer(&self, path: &Path) -> anyhow::Result<Blob> {
        let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        let mut tar = tar::Builder::new(Hashing::new(BufWriter::new(file)));
        for (path, entry) in self.with_parents() {
            add(&mut tar, &path, entry)
                .with_context(|| format!("add {} to {}", path.display(), self.name))?;
        }
        let hashing = tar.into_inner().context("end the layer")?;
        hashing.finish().context("write the layer")
    }

    /// Every entry with its folders before it; a folder that was not named has mode 0755.
    fn with_parents(&self) -> BTreeMap<PathBuf, Option<&Entry>> {
        let mut all: BTreeMap<PathBuf, Option<&Entry>> = BTreeMap::new();
        for (path, entry) in &self.entries {
            for parent in path.ancestors().skip(1).filter(|parent| parent.parent().is_some()) {
                all.entry(parent.to_path_buf()).or_insert(None);
            }
            all.insert(path.clone(), Some(entry));
        }
        all
    }

    fn config(&self, layer: &Blob) -> Value {
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "User": format!("{NONROOT}:{NONROOT}"),
                "Env": self.env,
                "Entrypoint": self.entrypoint,
                "WorkingDir": "/tmp",
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
            "history": [{ "created_by": "portolan-cluster image" }],
        })
    }

    fn index(&self, manifest: &Blob) -> Value {
        json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": manifest.digest,
                "size": manifest.size,
                "annotations": {
                    (NAME): self.name,
                    "org.opencontainers.image.ref.name": "dev",
                },
            }],
        })
    }
}

/// The annotation by which containerd names an image it imports.
const NAME: &str = "io.containerd.image.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest(config: &Blob, layer: &Blob) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest,
            "size": config.size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.digest,
            "size": layer.size,
        }],
    })
}

/// What an archive holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Described {
    /// Tells one content from another: the hash of the archive's index.
    pub digest: String,
    /// The full names of its images; empty when it names none.
    pub names: Vec<String>,
}

/// Reads an archive's index: of the OCI layout or, in the older form, its manifest.
///
/// # Errors
/// When the file is no image archive.
pub fn describe(archive: &Path) -> anyhow::Result<Described> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries_with_seek().context("read the archive")? {
        // The reason would quote the file's first bytes.
        let Ok(mut entry) = entry else { bail!("{} is no tar archive", archive.display()) };
        let path = entry.path().context("read an entry's path")?.into_owned();
        if path == Path::new("index.json") || path == Path::new("manifest.json") {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).context("read the archive's index")?;
            let index = serde_json::from_slice(&bytes).context("read the archive's index")?;
            return Ok(Described { digest: Blob::of(&bytes).digest, names: names(&index) });
        }
    }
    bail!("{} is no image archive: it has neither index.json nor manifest.json", archive.display())
}

fn names(index: &Value) -> Vec<String> {
    let oci = index["manifests"].as_array().into_iter().flatten();
    let oci = oci.map(|manifest| &manifest["annotations"][NAME]);
    let older = index.as_array().into_iter().flatten();
    let older = older.flat_map(|image| image["RepoTags"].as_array().into_iter().flatten());
    oci.chain(older).filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// The shared libraries a program loads, as the system's loader finds them; none for a static one.
fn libraries(program: &Path, root: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    if let Some(root) = root {
        let triplet = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        ldd.env("LD_LIBRARY_PATH", root.join(triplet));
    }
    let printed = match command::output(ldd.arg(program)) {
        Ok(printed) => printed,
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    parse_libraries(&printed).with_context(|| format!("find what {} loads", program.display()))
}

fn parse_libraries(printed: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in printed.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("a library is missing: {line}");
        }
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (").filter(|(path, _)| path.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

fn add<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &Path,
    entry: Option<&Entry>,
) -> anyhow::Result<()> {
    // Names in an archive are relative.
    let name: PathBuf =
        path.components().filter(|part| !matches!(part, Component::RootDir)).collect();
    match entry {
        None => folder(tar, &name, 0o755),
        Some(Entry::Folder { mode }) => folder(tar, &name, *mode),
        Some(Entry::Text { text }) => {
            let mut header = header(text.len() as u64, 0o644);
            Ok(tar.append_data(&mut header, name, text.as_bytes())?)
        }
        Some(Entry::Copy { source, mode }) => {
            let file = File::open(source).with_context(|| format!("open {}", source.display()))?;
            let size = file.metadata().context("read its size")?.len();
            Ok(tar.append_data(&mut header(size, *mode), name, file)?)
        }
        Some(Entry::Link { target }) => {
            let mut header = header(0, 0o777);
            header.set_entry_type(tar::EntryType::Symlink);
            Ok(tar.append_link(&mut header, name, target)?)
        }
    }
}

fn folder<W: Write>(tar: &mut tar::Builder<W>, name: &Path, mode: u32) -> anyhow::Result<()> {
    let mut header = header(0, mode);
    header.set_entry_type(tar::EntryType::Directory);
    Ok(tar.append_data(&mut header, name, io::empty())?)
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64, 0o644), path, bytes)
        .with_context(|| format!("write {path}"))
}

/// No owner and no time: the same content gives the same digest.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[derive(Debug)]
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
        Self { digest: format!("sha256:{digest}"), size: bytes.len() as u64 }
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

/// Passes bytes on, and hashes and counts them on the way.
#[derive(Debug)]
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn finish(mut self) -> io::Result<Blob> {
        self.inner.flush()?;
        let digest = data_encoding::HEXLOWER.encode(&self.hash.finalize());
        Ok(Blob { digest: format!("sha256:{digest}"), size: self.size })
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_their_absolute_paths() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_libraries(printed).unwrap(), expected);
    }

    #[test]
    fn a_missing_library_is_an_error() {
        let error = parse_libraries("\tlibnope.so.1 => not found\n").unwrap_err().to_string();
        assert_eq!(error, "a library is missing: libnope.so.1 => not found");
    }

    #[test]
    fn the_same_content_gives_the_same_digest_and_another_gives_another() {
        let folder = std::env::temp_dir().join(format!("portolan-archive-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut image = Image::new("probe");
        image.text("/a/b", "one");
        let written = |image: &Image, name: &str| {
            let path = folder.join(name);
            image.write(&path).unwrap();
            describe(&path).unwrap()
        };
        let first = written(&image, "first.tar");
        assert_eq!(first.names, ["docker.io/portolan/probe:dev"]);
        assert_eq!(first, written(&image, "second.tar"));
        image.text("/a/b", "two");
        assert_ne!(first.digest, written(&image, "third.tar").digest);
        fs::remove_dir_all(&folder).unwrap();
    }
}
