#!/usr/bin/perl
# Asks the platform's own library, so that every storage type and every start option works here
# as it does there. One JSON request per line on standard input, one JSON reply per line on what
# was standard output when we started:
#   {"id":1,"method":"volume_facts","params":{"volid":"local:100/vm-100-disk-0.qcow2"}}
#   {"id":1,"result":{...},"output":["a line that the library printed"]}
#   {"id":1,"error":"storage 'x' does not exist","output":[]}
# The library prints and warns as it likes, and so do programs that it runs: all that goes to a
# file of ours whose lines travel in "output".

use strict;
use warnings;

use Fcntl qw(SEEK_SET);
use IO::Handle;
use JSON::PP ();

open(my $replies, '>&', \*STDOUT) or die "unable to keep standard output: $!\n";
$replies->autoflush(1);
open(my $printed, '+>', undef) or die "unable to make a temporary file: $!\n";
open(STDOUT, '>&', $printed) or die "unable to redirect standard output: $!\n";
open(STDERR, '>&', $printed) or die "unable to redirect standard error: $!\n";
STDOUT->autoflush(1);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;

my $storage_config = sub {
    require PVE::Storage;
    return PVE::Storage::config();
};

my $vm_library = sub {
    require PVE::QemuServer;
    # Some library calls ask who is calling; this process acts for root.
    eval {
        require PVE::RPCEnvironment;
        PVE::RPCEnvironment->setup_default_cli_env();
    };
};

my $volume_facts = sub {
    my ($config, $volid) = @_;

    my ($storage_id) = PVE::Storage::parse_volume_id($volid);
    my $path = PVE::Storage::path($config, $volid);
    # In scalar context only the size is asked for: usage can be slow to find out.
    my $size_bytes = PVE::Storage::volume_size_info($config, $volid, 5);
    die "no such volume '$volid'\n" if !defined($size_bytes);
    # The format is a matter of name and storage, never of looking into the image.
    my $format = (PVE::Storage::parse_volname($config, $volid))[6] // 'raw';
    return {
        volid => $volid,
        storage_id => $storage_id,
        path => $path,
        size_bytes => int($size_bytes),
        format => $format,
        is_block_device => (-b $path) ? JSON::PP::true : JSON::PP::false,
    };
};

my %methods = (
    activate_volumes => sub {
        my ($params) = @_;
        my $config = $storage_config->();
        PVE::Storage::activate_volumes($config, $params->{volids});
        return undef;
    },
    volume_facts => sub {
        my ($params) = @_;
        my $config = $storage_config->();
        return $volume_facts->($config, $params->{volid});
    },
    backup_directory => sub {
        my ($params) = @_;
        my $storage_id = $params->{storage_id};
        my $config = $storage_config->();
        my $section = PVE::Storage::storage_check_enabled($config, $storage_id);
        PVE::Storage::activate_storage($config, $storage_id);
        die "can't use storage '$storage_id' for backups - wrong content type\n"
            if !$section->{content}->{backup};
        my $plugin = PVE::Storage::Plugin->lookup($section->{type});
        return $plugin->get_subdir($section, 'backup');
    },
    allocate => sub {
        my ($params) = @_;
        my ($storage_id, $vmid, $format, $name) = $params->@{qw(storage_id vmid format name)};
        my $config = $storage_config->();
        PVE::Storage::activate_storage($config, $storage_id);
        my $size_kib = int(($params->{size_bytes} + 1023) / 1024);
        my $volid =
            PVE::Storage::vdisk_alloc($config, $storage_id, $vmid, $format, $name, $size_kib);
        PVE::Storage::activate_volumes($config, [$volid]);
        return $volume_facts->($config, $volid);
    },
    free => sub {
        my ($params) = @_;
        my $volid = $params->{volid};
        my $config = $storage_config->();
        my ($storage_id) = PVE::Storage::parse_volume_id($volid);
        my $found = PVE::Storage::vdisk_list($config, $storage_id, undef, [$volid]);
        return undef if !@{ $found->{$storage_id} // [] };
        PVE::Storage::deactivate_volumes($config, [$volid]);
        PVE::Storage::vdisk_free($config, $volid);
        return undef;
    },
    vm_start_paused => sub {
        my ($params) = @_;
        $vm_library->();
        my $config = $storage_config->();
        my $options = { skiplock => 1, skiptemplate => 1, paused => 1 };
        PVE::QemuServer::vm_start($config, $params->{vmid}, $options);
        return undef;
    },
    vm_stop => sub {
        my ($params) = @_;
        $vm_library->();
        my $config = $storage_config->();
        # skiplock, nocheck, timeout, shutdown, force
        PVE::QemuServer::vm_stop($config, $params->{vmid}, 1, 0, undef, 0, 1);
        return undef;
    },
    notify => sub {
        my ($params) = @_;
        # A platform of before it tells nobody but the recipients of a mail.
        return undef if !eval { require PVE::Notify; 1 } && $@ =~ m{^Can't locate PVE/Notify\.pm};
        require PVE::Notify;
        # Names of the host and the cluster, as the library knows them.
        my $data = { $params->{data}->%*, PVE::Notify::common_template_data()->%* };
        PVE::Notify::notify($params->{severity}, $params->{template}, $data, $params->{fields});
        return undef;
    },
);

sub printed_lines {
    STDOUT->flush();
    seek($printed, 0, SEEK_SET);
    my @lines = <$printed>;
    chomp(@lines);
    truncate($printed, 0);
    seek($printed, 0, SEEK_SET);
    return \@lines;
}

while (defined(my $line = <STDIN>)) {
    my $request = eval { $json->decode($line) };
    last if ref($request) ne 'HASH';
    my $reply = { id => $request->{id} };
    my $method = $methods{ $request->{method} // '' };
    my $result = eval {
        die "no method '" . ($request->{method} // '') . "'\n" if !$method;
        $method->($request->{params} // {});
    };
    if (my $error = $@) {
        chomp($error = "$error");
        $reply->{error} = $error;
    } else {
        $reply->{result} = $result;
    }
    $reply->{output} = printed_lines();
    print {$replies} $json->encode($reply), "\n";
}
