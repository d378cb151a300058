package PVE::Storage;

# Stands in for the platform's storage library: the calls the bridge makes, with its signatures.

use strict;
use warnings;

use PVE::StubCalls;
use PVE::Storage::Plugin;

my $config = {
    ids => {
        nas => { type => 'nfs', path => '/mnt/pve/nas', content => { backup => 1, images => 1 } },
        thin => { type => 'lvmthin', content => { images => 1 } },
    },
};

sub config { return $config; }

sub parse_volume_id {
    my ($volid) = @_;
    return ($1, $2) if $volid =~ m/^([a-z][a-z0-9]+):(.+)$/;
    die "unable to parse volume ID '$volid'\n";
}

sub parse_volname {
    my ($cfg, $volid) = @_;
    my ($storage_id, $name) = parse_volume_id($volid);
    my $format = $name =~ m/\.(qcow2|raw)$/ ? $1 : 'raw';
    return ('images', $name, 100, undef, undef, 0, $format) if $storage_id eq 'nas';
    return ('images', $name, 100, undef, undef, 0);
}

sub path {
    my ($cfg, $volid) = @_;
    my ($storage_id, $name) = parse_volume_id($volid);
    return $storage_id eq 'nas' ? "/mnt/pve/nas/images/$name" : "/dev/thin/$name";
}

sub volume_size_info {
    my ($cfg, $volid, $timeout) = @_;
    PVE::StubCalls::record('volume_size_info', $volid, $timeout, wantarray ? 'list' : 'scalar');
    return undef if $volid =~ m/missing/;
    print "Formatting things\n";
    warn "a warning of the library\n";
    system('echo', 'printed by a program');
    return 4294967296;
}

sub activate_volumes {
    my ($cfg, $volids) = @_;
    PVE::StubCalls::record('activate_volumes', $volids);
    for my $volid (@$volids) {
        die "volume '$volid' does not exist\n" if $volid =~ m/missing/;
        sleep(60) if $volid =~ m/hanging/;
        exit(3) if $volid =~ m/dying/;
    }
}

sub deactivate_volumes {
    my ($cfg, $volids) = @_;
    PVE::StubCalls::record('deactivate_volumes', $volids);
}

sub storage_check_enabled {
    my ($cfg, $storage_id) = @_;
    return $cfg->{ids}->{$storage_id} // die "storage '$storage_id' does not exist\n";
}

sub activate_storage {
    my ($cfg, $storage_id) = @_;
    PVE::StubCalls::record('activate_storage', $storage_id);
}

sub vdisk_alloc {
    my ($cfg, $storage_id, $vmid, $format, $name, $size_kib) = @_;
    PVE::StubCalls::record('vdisk_alloc', $storage_id, $vmid, $format, $name, $size_kib);
    return $storage_id eq 'nas' ? "nas:$vmid/$name" : "$storage_id:$name";
}

sub vdisk_list {
    my ($cfg, $storage_id, $vmid, $vollist) = @_;
    my @found = grep { !m/missing/ } @$vollist;
    return { $storage_id => [map { { volid => $_ } } @found] };
}

sub vdisk_free {
    my ($cfg, $volid) = @_;
    PVE::StubCalls::record('vdisk_free', $volid);
}

1;
