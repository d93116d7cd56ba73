//! The mount(8) helper: which command line of vminfod each call of mount(8) becomes.
//!
//! A stand-in for vminfod that only prints its arguments is put into the PATH, so nothing is
//! mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use tempfile::TempDir;

const HELPER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/mount-scripts/mount.fuse.vminfod"
);

/// A program that prints its arguments, a line each, and exits 3.
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/print-arguments");

/// Puts the stand-in into `folder` as `vminfod`.
///
/// A link, because a file written by this process could not be executed (ETXTBSY) while the child
/// that another test has just forked still holds it open.
fn put_stand_in(folder: &Path) -> PathBuf {
    let program = folder.join("vminfod");
    symlink(STAND_IN, &program).unwrap();
    program
}

/// Runs `helper` as mount(8) does, with `folder` first in the PATH.
fn run(helper: &Path, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(helper)
        .args(arguments)
        .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
        .output()
        .unwrap()
}

/// What vminfod is called with when mount(8) gives the helper these arguments.
fn vminfod_arguments(arguments: &[&str]) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    put_stand_in(folder.path());
    let output = run(Path::new(HELPER), folder.path(), arguments);
    assert_eq!(
        output.status.code(),
        Some(3),
        "vminfod's exit code is the helper's: {output:?}"
    );
    lines(&output.stdout)
}

/// The value of `-o` that vminfod gets when mount(8) gives the helper `options`, if it gets one.
fn passed_options(options: &str) -> Option<String> {
    let arguments = vminfod_arguments(&["zones", "/vms", "-o", options]);
    let at = arguments.iter().position(|argument| argument == "-o")?;
    Some(arguments[at + 1].clone())
}

/// How the helper refuses these arguments: its exit code and its one line.
fn refusal(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    put_stand_in(folder.path());
    let output = run(Path::new(HELPER), folder.path(), arguments);
    assert!(output.stdout.is_empty(), "vminfod was called: {output:?}");
    let mut said = lines(&output.stderr);
    assert_eq!(said.len(), 1, "{said:?}");
    (output.status.code(), said.remove(0))
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec())
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn source_and_directory_become_a_mount_command() {
    assert_eq!(
        vminfod_arguments(&["zones", "/vms"]),
        ["mount", "--source", "zones", "/vms"]
    );
    assert_eq!(
        vminfod_arguments(&["libvirt:qemu:///system", "/mnt/my vms", "-o", "rw"]),
        ["mount", "--source", "libvirt:qemu:///system", "/mnt/my vms"]
    );
}

#[test]
fn options_of_vminfod_are_passed_on_in_their_order() {
    assert_eq!(
        passed_options("rw,zones_root=/srv/store,group=adm,rescan=60").as_deref(),
        Some("zones_root=/srv/store,group=adm,rescan=60")
    );
}

#[test]
fn read_only_reaches_vminfod_so_that_nobody_gets_a_writable_mount_instead() {
    assert_eq!(passed_options("ro,noatime").as_deref(), Some("ro"));
}

#[test]
fn options_of_fstab_and_of_the_kernel_stay_with_mount() {
    // What mount(8) of util-linux 2.38 hands on for `noauto,user,nofail,_netdev,noatime,defaults`.
    assert_eq!(
        passed_options("rw,noatime,noexec,nosuid,nodev,user,nofail,_netdev"),
        None
    );
    assert_eq!(
        passed_options("defaults,noauto,x-systemd.automount,comment=ours,X-mount.mkdir"),
        None
    );
}

#[test]
fn a_bare_group_is_fstabs_and_one_with_a_name_is_ours() {
    assert_eq!(passed_options("group"), None);
    assert_eq!(
        passed_options("group,group=kvm").as_deref(),
        Some("group=kvm")
    );
}

#[test]
fn a_mount_closed_to_others_has_a_name_that_mount_does_not_keep() {
    assert_eq!(passed_options("noallow_other").as_deref(), Some("private"));
}

#[test]
fn a_value_with_blanks_globs_or_quoted_commas_is_passed_on_as_it_is() {
    let options = "zones_root=\"/srv/a, b\",confirm_timeout=*,alias=$(id)";
    assert_eq!(passed_options(options).as_deref(), Some(options));
}

#[test]
fn flags_that_mean_nothing_here_change_nothing() {
    assert_eq!(
        vminfod_arguments(&[
            "zones",
            "/vms",
            "-s",
            "-n",
            "-t",
            "fuse.vminfod",
            "-o",
            "rw"
        ]),
        ["mount", "--source", "zones", "/vms"]
    );
}

#[test]
fn verbose_says_on_stderr_what_is_run() {
    let folder = TempDir::new().unwrap();
    let program = put_stand_in(folder.path());
    let output = run(
        Path::new(HELPER),
        folder.path(),
        &["zones", "/vms", "-v", "-o", "group=adm"],
    );
    assert_eq!(lines(&output.stdout).len(), 6);
    assert_eq!(
        lines(&output.stderr),
        [format!(
            "mount.fuse.vminfod: {} mount --source zones -o group=adm /vms",
            program.display()
        )]
    );
}

#[test]
fn a_fake_mount_runs_nothing_and_succeeds() {
    let folder = TempDir::new().unwrap();
    put_stand_in(folder.path());
    let output = run(
        Path::new(HELPER),
        folder.path(),
        &["zones", "/vms", "-f", "-o", "rw"],
    );
    assert!(output.status.success());
    assert!(output.stdout.is_empty());
}

#[test]
fn a_remount_is_refused_with_what_to_do_instead() {
    let (code, said) = refusal(&["zones", "/vms", "-o", "rw,remount"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        said,
        "mount.fuse.vminfod: /vms: options cannot be changed while mounted: unmount it and mount it again"
    );
}

#[test]
fn another_mount_namespace_is_refused() {
    let (code, said) = refusal(&["zones", "/vms", "-N", "/proc/1/ns/mnt"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("nsenter --mount=/proc/1/ns/mnt"), "{said}");
}

#[test]
fn a_wrong_call_is_answered_with_the_usage() {
    for arguments in [
        &[][..],
        &["zones"],
        &["-o", "rw"],
        &["zones", "", "-o", "rw"],
        &["zones", "/vms", "extra"],
    ] {
        let (code, said) = refusal(arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(
            said.contains("usage: mount.fuse.vminfod zones|libvirt:URI DIR"),
            "{said}"
        );
    }
}

#[test]
fn vminfod_is_found_beside_the_helper_and_in_the_build_even_through_a_link() {
    let folder = TempDir::new().unwrap();
    let scripts = folder.path().join("mount-scripts");
    let build = folder.path().join("target/release");
    let sbin = folder.path().join("sbin");
    for new in [&scripts, &build, &sbin] {
        fs::create_dir_all(new).unwrap();
    }
    let helper = scripts.join("mount.fuse.vminfod");
    // By a process of its own, for the same reason that the stand-in is a link.
    assert!(
        Command::new("cp")
            .args([Path::new(HELPER), &helper])
            .status()
            .unwrap()
            .success()
    );
    let installed = sbin.join("mount.fuse.vminfod");
    symlink(&helper, &installed).unwrap();
    let empty = TempDir::new().unwrap();
    let called = |helper: &Path| run(helper, empty.path(), &["zones", "/vms", "-f", "-v"]);

    let missing = called(&installed);
    assert_eq!(missing.status.code(), Some(2));
    assert!(lines(&missing.stderr)[0].contains("cannot find vminfod"));

    put_stand_in(&build);
    assert!(lines(&called(&installed).stderr)[0].contains("/target/release/vminfod mount"));

    put_stand_in(&scripts);
    assert!(lines(&called(&installed).stderr)[0].contains("/mount-scripts/vminfod mount"));
}

proptest! {
    // Each case starts a shell, so there are few.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn dropping_mounts_own_options_never_touches_the_others(
        options in prop::collection::vec(
            prop_oneof![
                Just("rw".to_owned()),
                Just("nofail".to_owned()),
                Just("x-systemd.requires=a".to_owned()),
                // Any printable character but the comma.
                "(zones_root|group|rescan)=[ -+\\--~]{0,12}",
            ],
            0..6,
        )
    ) {
        let ours: Vec<&str> =
            options.iter().map(String::as_str).filter(|option| option.contains('=') && !option.starts_with("x-")).collect();
        let expected = (!ours.is_empty()).then(|| ours.join(","));
        prop_assert_eq!(passed_options(&options.join(",")), expected);
    }
}
