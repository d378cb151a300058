package PVE::Storage::Plugin;

# Stands in for the base of the platform's storage plugins.

use strict;
use warnings;

sub lookup {
    my ($class, $type) = @_;
    return $class;
}

sub get_subdir {
    my ($class, $section, $content) = @_;
    return "$section->{path}/dump" if $content eq 'backup';
    die "no directory for '$content'\n";
}

1;
