package PVE::Notify;

# Stands in for the platform's notification library.

use strict;
use warnings;

use PVE::StubCalls;

sub common_template_data {
    return { hostname => 'pve1', fqdn => 'pve1.example.com', 'cluster-name' => 'prod' };
}

sub notify {
    my ($severity, $template_name, $template_data, $fields, $config) = @_;
    PVE::StubCalls::record('notify', $severity, $template_name, $template_data, $fields, $config);
    die "could not read notifications.cfg\n" if ($fields->{'job-id'} // '') eq 'dying';
    # The library goes on where a target fails, and says so.
    print STDERR "ERROR: could not notify via target `mail-to-root`: no address\n"
        if ($fields->{'job-id'} // '') eq 'unheard';
}

1;
