# shellcheck shell=bash
# Starts libvirtd where the folders below $1 are in the places of the host's, in the mount namespace that it is run in.
# The tests and the bench run it. The user is one that libvirtd wants to exist; Debian's package libvirt-daemon-system
# would make it.
set -e
cd "$1"
mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
for folder in etc/libvirt run/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
    mount --bind "$folder" "/$folder"
done
for file in passwd group; do
    grep -v ^libvirt-qemu: "/etc/$file" >"etc/$file"
done
echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>etc/passwd
echo 'libvirt-qemu:x:64055:' >>etc/group
mount --bind etc/passwd /etc/passwd
mount --bind etc/group /etc/group
exec libvirtd -f "$1/etc/libvirt/libvirtd.conf" -p "$1/run/libvirtd.pid"
