package PVE::QemuServer;

# Stands in for the platform's VM library: starting and stopping.

use strict;
use warnings;

use PVE::StubCalls;

sub vm_start {
    my ($storecfg, $vmid, $params, $migrate_opts) = @_;
    PVE::StubCalls::record('vm_start', ref($storecfg), $vmid, $params, $migrate_opts);
    die "start failed: command 'kvm' failed:\n  got timeout\n" if $vmid == 666;
    print "generating cloud-init ISO\n";
}

sub vm_stop {
    my ($storecfg, $vmid, $skiplock, $nocheck, $timeout, $shutdown, $force, $keep_active) = @_;
    PVE::StubCalls::record(
        'vm_stop', $vmid, $skiplock, $nocheck, $timeout, $shutdown, $force, $keep_active,
    );
    print "trying to acquire lock...\n OK\n";
}

1;
