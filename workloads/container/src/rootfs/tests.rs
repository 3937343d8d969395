//! With real mounts, which need root; each test has directories of its own and leaves no mount behind.

use super::*;

use crate::idmap::IdMaps;

const BASE: u32 = 1 << 30;

struct Scene {
    directory: tempfile::TempDir,
    layers: Vec<String>,
}

impl Scene {
    /// A lower layer with `/bin/tool` (owner 7), `/etc/gone`, and an upper one without `/etc/gone` and with another
    /// `/etc/name`.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for made in ["run", "state", "layers/a1/bin", "layers/a1/etc", "layers/b2/etc"] {
            fs::create_dir_all(directory.path().join(made)).unwrap();
        }
        let file = |path: &str, text: &str| fs::write(directory.path().join(path), text).unwrap();
        file("layers/a1/bin/tool", "tool");
        file("layers/a1/etc/gone", "gone");
        file("layers/a1/etc/name", "below");
        file("layers/b2/etc/name", "above");
        chown(directory.path().join("layers/a1/bin/tool"), Some(7), Some(8)).unwrap();
        let whiteout = directory.path().join("layers/b2/etc/gone");
        rustix::fs::mknodat(CWD, whiteout, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        fs::set_permissions(directory.path().join("layers/b2"), fs::Permissions::from_mode(0o1751)).unwrap();
        Self { directory, layers: vec!["a1".to_owned(), "b2".to_owned()] }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = self.directory.path().to_str().unwrap();
        mounts.lines().filter(|line| line.contains(place)).map(str::to_owned).collect()
    }
}

#[test]
fn a_shifted_root_shows_its_layers_and_takes_writes() {
    let scene = Scene::new();
    let (run, layer_directory, state) = (scene.path("run"), scene.path("layers"), scene.path("state"));
    let userns = IdMaps::default().namespace(BASE).unwrap();
    let root = Root {
        directory: &run,
        layer_directory: &layer_directory,
        layers: &scene.layers,
        root_layer: scene.layers.last().map(String::as_str),
        state: &state,
        id_map: Some((userns.as_fd(), BASE)),
        volatile: true,
    };
    let target = mount_root(&root).unwrap();
    assert_eq!(scene.mounts().len(), 1, "the clone of the layers is gone: {:?}", scene.mounts());
    let top = fs::metadata(&target).unwrap();
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (BASE, BASE, 0o1751));
    let tool = fs::metadata(target.join("bin/tool")).unwrap();
    assert_eq!((tool.uid(), tool.gid()), (BASE + 7, BASE + 8));
    assert_eq!(fs::read_to_string(target.join("etc/name")).unwrap(), "above");
    assert!(!target.join("etc/gone").exists());
    fs::write(target.join("etc/name"), "mine").unwrap();
    fs::remove_file(target.join("bin/tool")).unwrap();
    assert_eq!(fs::read_to_string(scene.path("layers/b2/etc/name")).unwrap(), "above", "layers are never written");
    assert_eq!(fs::read_to_string(scene.path("state/upper/etc/name")).unwrap(), "mine");
    unmount(&target).unwrap();
    unmount(&target).unwrap();
    assert_eq!(scene.mounts(), Vec::<String>::new());
}

#[test]
fn what_was_written_is_there_after_the_next_mount() {
    let scene = Scene::new();
    let (run, layer_directory, state) = (scene.path("run"), scene.path("layers"), scene.path("state"));
    let root = Root {
        directory: &run,
        layer_directory: &layer_directory,
        layers: &scene.layers,
        root_layer: scene.layers.last().map(String::as_str),
        state: &state,
        id_map: None,
        volatile: false,
    };
    for round in 0..2 {
        let target = mount_root(&root).unwrap();
        let tool = fs::metadata(target.join("bin/tool")).unwrap();
        assert_eq!((tool.uid(), tool.gid()), (7, 8), "without a user namespace ids stay");
        let kept = target.join("kept");
        assert_eq!(kept.exists(), round == 1);
        fs::write(kept, "x").unwrap();
        unmount(&target).unwrap();
    }
}

#[test]
fn the_old_mount_call_gives_the_same_root() {
    let scene = Scene::new();
    let (upper, work, target) = (scene.path("state/u,p:per"), scene.path("state/work"), scene.path("run/root"));
    for directory in [&upper, &work, &target] {
        fs::create_dir(directory).unwrap();
    }
    let before = std::env::current_dir().unwrap();
    let lowers = vec![scene.path("layers/b2"), scene.path("layers/a1")];
    Overlay { lowers, upper: upper.clone(), work, volatile: true }.mount_by_options(&target).unwrap();
    assert_eq!(fs::read_to_string(target.join("etc/name")).unwrap(), "above");
    fs::write(target.join("new"), "x").unwrap();
    assert!(upper.join("new").exists());
    unmount(&target).unwrap();
    assert_eq!(std::env::current_dir().unwrap(), before);
}

#[test]
fn an_image_without_layers_has_an_empty_root() {
    let scene = Scene::new();
    let (run, layer_directory, state) = (scene.path("run"), scene.path("layers"), scene.path("state"));
    let userns = IdMaps::default().namespace(BASE).unwrap();
    let id_map = Some((userns.as_fd(), BASE));
    let root = Root {
        directory: &run,
        layer_directory: &layer_directory,
        layers: &[],
        root_layer: None,
        state: &state,
        id_map,
        volatile: true,
    };
    let target = mount_root(&root).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    unmount(&target).unwrap();
}

#[test]
fn a_missing_layer_is_told_and_leaves_nothing() {
    let scene = Scene::new();
    let (run, layer_directory, state) = (scene.path("run"), scene.path("layers"), scene.path("state"));
    let userns = IdMaps::default().namespace(BASE).unwrap();
    let id_map = Some((userns.as_fd(), BASE));
    for missing in ["a9", "../layers", "a:b"] {
        let layers = vec![missing.to_owned(), "b2".to_owned()];
        let root = Root {
            directory: &run,
            layer_directory: &layer_directory,
            layers: &layers,
            root_layer: Some("b2"),
            state: &state,
            id_map,
            volatile: false,
        };
        mount_root(&root).unwrap_err();
        assert_eq!(scene.mounts(), Vec::<String>::new());
    }
}

#[test]
fn sysfs_shows_the_links_of_its_network_namespace_only() {
    let scene = Scene::new();
    let netns = scene.path("netns");
    fs::write(&netns, "").unwrap();
    thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            sys::own_network_namespace().unwrap();
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &netns).unwrap();
        });
        pinned.join().unwrap();
    });
    let target = scene.path("run/sys");
    mount_sysfs(&netns, &target).unwrap();
    let mut links: Vec<_> = fs::read_dir(target.join("class/net")).unwrap().map(|e| e.unwrap().file_name()).collect();
    links.sort();
    assert!(links.contains(&"lo".into()) && !links.contains(&"eth0".into()), "{links:?}");
    assert!(fs::write(target.join("kernel/uevent_helper"), "/bin/false").is_err(), "read-only");
    unmount(&target).unwrap();
    unmount(&netns).unwrap();
}

#[test]
fn the_run_directory_becomes_one_private_mount_once() {
    let scene = Scene::new();
    let run = scene.path("run");
    for _ in 0..3 {
        ensure_private_mount(&run).unwrap();
    }
    let mounts = scene.mounts();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert!(!mounts[0].contains("shared:"));
    unmount(&run).unwrap();
}

#[test]
fn layer_names_are_one_plain_component() {
    for good in ["a1b2-c3", "layers@1073741824", "x_1.2"] {
        assert!(is_layer_name(good), "{good}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "a:b", "a,b", "a b", "a\\b", &"a".repeat(256)] {
        assert!(!is_layer_name(bad), "{bad}");
    }
}

#[test]
fn separators_are_escaped() {
    assert_eq!(escape("/a:b,c\\d"), "/a\\:b\\,c\\\\d");
}
