//! What `vmadm` says about itself, and why it refuses what it refuses.

pub const ABOUT_ALL: &str = "\
Lists and changes the VMs of this host.

Everything is read from the mounted tree and written to it, so what you may see is what you may read \
there. VMs carry passwords: they are shown to root, and to the group given to `vminfod mount -o group=`.

A change is done when the command returns: every later read, by whomever, shows it.";

pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage (the usage is then on standard error)

Environment:
  VMINFOD_MOUNT  where the VMs are mounted, unless --mount says so [default: /vms]

Examples:
  vmadm list state=running
  vmadm update 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 quota=20
  vmadm --mount /tmp/vms lookup -1 alias=web";

pub const LIST: &str = "\
FIELD is a property, or leads into one: nics.0.ip, disks.0.size, tags.role. `type` is OS, LX, KVM or \
BHYV, and `ram` of a VM without a kernel of its own is its max_physical_memory. What a VM lacks is a \
dash, and with -p nothing.

All filters must hold. field=value compares the whole value, field=~regex finds a regular \
expression in it, in capitals or not. In filters a `*` stands for any element: nics.*.ip=10.0.0.7.

What is missing, false or 0 sorts last, and with a `-` first.

Examples:
  $ vmadm list
  UUID                                  TYPE  RAM      STATE             ALIAS
  8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11  OS    256      running           web
  $ vmadm list -p -o alias,nics.0.ip -s -quota 'alias=~^web'
  web:10.88.88.213";

pub const LOOKUP: &str = "\
All filters must hold. field=value compares the whole value, field=~regex finds a regular \
expression in it, in capitals or not; nics.*.ip=10.0.0.7 holds if one of the nics has this address.

Examples:
  $ vmadm lookup -1 alias=web
  8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  vmadm lookup -j -o uuid,alias,nics 'tags.role=~db' | jq .";

pub const GET: &str = "\
Example:
  $ vmadm get 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 | jq -r .state
  running";

pub const CREATE: &str = "\
Returns when the VM is there for everybody.

Example:
  $ echo '{\"brand\": \"joyent\", \"image_uuid\": \"63d6e664-3f1f-11e8-aef6-a3120cf8dd9d\", \
\"alias\": \"web\"}' | vmadm create
  Successfully created VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const UPDATE: &str = "\
Either words, or JSON from a file or standard input. All of it is looked at first: one bad property, and \
nothing is changed.

JSON that holds `uuid` is a whole VM, as `vmadm get` prints it: the VM is made like it. Any other \
names what is to change: properties, and set_tags, remove_tags (also of customer_metadata, \
internal_metadata, routes), add_nics, update_nics, remove_nics (also of disks, filesystems, \
pci_devices).

Examples:
  vmadm update 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 quota=20 alias=
  echo '{\"set_tags\": {\"role\": \"web\"}}' | vmadm update 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const DELETE: &str = "\
A VM that runs is halted. Its datasets and snapshots are removed; nothing brings them back.

Example:
  $ vmadm delete 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  Successfully deleted VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const START: &str = "\
A VM that runs already is no error.

Example:
  $ vmadm start 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  Successfully started VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const STOP: &str = "\
A VM that is stopped already is no error.

Example:
  $ vmadm stop -t 60 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  Successfully completed stop for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const REBOOT: &str = "\
Example:
  $ vmadm reboot -F 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  Successfully completed reboot for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const KILL: &str = "\
Examples:
  $ vmadm kill -s SIGHUP 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  Sent signal \"SIGHUP\" to init process for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  vmadm kill -KILL 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const VALIDATE: &str = "\
An update is looked at for a VM, or for some VM of a brand (joyent, joyent-minimal, builder, lx, kvm, \
bhyve), which is then taken to have the nics and disks that the payload changes. Whether an image exists \
or a uuid is free is not looked at.

Examples:
  $ vmadm validate create -f web.json
  VALID 'create' payload for joyent brand VMs.
  $ echo '{\"quota\": \"lots\"}' | vmadm validate update 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 || echo no";

pub const CREATE_SNAPSHOT: &str = "\
Example:
  $ vmadm create-snapshot 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 before-upgrade
  Created snapshot before-upgrade for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const ROLLBACK_SNAPSHOT: &str = "\
What was written since is lost.

Example:
  $ vmadm rollback-snapshot 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 before-upgrade
  Rolled back snapshot before-upgrade for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const DELETE_SNAPSHOT: &str = "\
Example:
  $ vmadm delete-snapshot 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11 before-upgrade
  Deleted snapshot before-upgrade for VM 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11";

pub const EVENTS: &str = "\
A line has the time, the first part of the uuid, the alias (a dash if there is none) and what \
happened. A VM that changed has a line for each of its properties that did. `vminfo events` can also \
begin in the past.

Example:
  $ vmadm events
  [17:20:09.634Z] c4103a37 foo modify: quota changed :: 10 -> 20";

pub const REFUSED: &str = "\
SmartOS's own vmadm can do this, since it drives the hypervisor and the image store. This one says what \
is missing, and exits with 1.

Example:
  $ vmadm console 8f1f9a3c-5d2e-4f7b-9c64-2b1f0a9d7e11
  vmadm console: needs a hypervisor that vminfod does not drive: connect with zlogin -C or virsh console";

pub const NO_CONSOLE: &str =
    "needs a hypervisor that vminfod does not drive: connect with zlogin -C or virsh console";

pub const NO_INFO: &str =
    "needs a hypervisor that vminfod does not drive: what is known of the VM is in vmadm get";

pub const NO_SYSRQ: &str = "needs a hypervisor that vminfod does not drive: ask it directly, with virsh inject-nmi or \
     virsh screenshot";

pub const NO_REPROVISION: &str = "needs an image store to make a new root from, which vminfod does not have: delete the VM and \
     create it again from the other image";

pub const NO_SEND: &str = "needs a stream of the VM's datasets, which vminfod does not make: use zfs send for them and \
     vmadm get for the VM";

pub const NO_RECEIVE: &str = "needs a stream of the VM's datasets, which vminfod does not read: use zfs receive for them and \
     vmadm create for the VM";

pub const NO_INSTALL: &str = "needs zoneadm to install a VM that was received, which vminfod does not do: run zoneadm attach";
