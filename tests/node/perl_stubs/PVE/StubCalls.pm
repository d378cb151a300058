package PVE::StubCalls;

# Writes down each call of a stub, one JSON array per line, to the file named in the environment.

use strict;
use warnings;

use JSON::PP ();

sub record {
    my ($name, @arguments) = @_;
    open(my $file, '>>', $ENV{PVE_STUB_CALLS}) or die "no file for calls: $!\n";
    print {$file} JSON::PP->new->canonical->allow_nonref->encode([$name, @arguments]), "\n";
    close($file);
}

1;
