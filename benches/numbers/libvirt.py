"""What is compared with vminfod: libvirt-python on a connection that stays open.

    libvirt.py URI ask       does what each line of standard input says, and prints how many seconds that took
    libvirt.py URI events    prints when each event arrived (ns of CLOCK_MONOTONIC) and the uuid of its domain
"""

import os
import sys
import time

import libvirt

XML = """<domain type='qemu'><name>vm{:04}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>"""
STATS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


class Asking:
    def __init__(self, connection):
        self.connection = connection
        self.domains = []

    def define(self, count):
        self.domains = [self.connection.defineXML(XML.format(n)) for n in range(int(count))]

    def start(self, count):
        for domain in self.domains[: int(count)]:
            domain.create()

    def state(self):
        for domain in self.domains:
            domain.state()

    def list(self):
        for domain in self.connection.listAllDomains():
            domain.name()

    def whole(self):
        """Asks for what vminfod shows of each."""
        for domain in self.connection.listAllDomains():
            domain.state()
            domain.XMLDesc()
            domain.autostart()
            domain.isPersistent()
            domain.hasManagedSaveImage()
            domain.listAllSnapshots()
            self.connection.domainListGetStats([domain], STATS)


def ask(connection):
    asking = Asking(connection)
    for line in sys.stdin:
        name, *arguments = line.split()
        began = time.perf_counter()
        getattr(asking, name)(*arguments)
        print(time.perf_counter() - began, flush=True)


def arrived(_connection, domain, *_details):
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    os.write(1, f"{now} {domain.UUIDString()}\n".encode())


def main():
    # What a libvirt does not know, it refuses; libvirt would print that too.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    _, uri, what = sys.argv
    if what == "ask":
        ask(libvirt.open(uri))
        return
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open(uri)
    for event in range(32):
        try:
            connection.domainEventRegisterAny(None, event, arrived, None)
        except libvirt.libvirtError:
            pass
    os.write(1, b"0 ready\n")
    while True:
        libvirt.virEventRunDefaultImpl()


main()
