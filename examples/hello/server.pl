#!/usr/bin/perl
# A small web server in nothing but Perl's core. Four processes accept
# connections; each answers one request at a time. At TERM they finish the
# request at hand and those that wait already, then end.
use strict;
use warnings;
use IO::Socket::INET;
use POSIX ();

my $port = $ENV{PORT} || 5000;
my $listener = IO::Socket::INET->new(LocalPort => $port, Listen => 128, ReuseAddr => 1)
    or die "cannot listen on port $port: $!\n";

open(my $file, '<', 'message.txt') or die "message.txt: $!\n";
chomp(my $message = do { local $/; <$file> });
close $file;

$| = 1;
$SIG{PIPE} = 'IGNORE';

my %children;
for (1 .. 4) {
    my $pid = fork() // die "cannot fork: $!\n";
    if (!$pid) { work(); exit 0 }
    $children{$pid} = 1;
}
print "listening on port $port\n";

# The handler only wakes waitpid; as process 1 we end when the workers have.
my $ending = 0;
$SIG{TERM} = $SIG{INT} = sub { $ending = 1; kill 'TERM', keys %children };
while (%children) {
    my $pid = waitpid(-1, 0);
    delete $children{$pid} if $pid > 0;
    die "a worker ended\n" if $pid > 0 && !$ending;
}
print "ended\n";

sub work {
    my $end = 0;
    # Without SA_RESTART, so that TERM interrupts accept.
    POSIX::sigaction(POSIX::SIGTERM(), POSIX::SigAction->new(sub { $end = 1; $listener->blocking(0) }));
    $SIG{INT} = 'IGNORE';
    while (1) {
        my $client = $listener->accept;
        if ($client) { answer($client) }
        elsif ($end) { return }
    }
}

sub answer {
    my ($client) = @_;
    $client->blocking(1);
    my $request = eval {
        local $SIG{ALRM} = sub { die "slow client\n" };
        alarm 10;
        my $first = <$client>;
        while (defined(my $line = <$client>)) { last if $line =~ /^\r?\n$/ }
        alarm 0;
        $first;
    };
    alarm 0;
    my ($method, $path) = ($request // '') =~ m{^([A-Z]+) (\S+) HTTP/1\.[01]\r?\n$} or return;
    my ($status, $body) = ('200 OK', text());
    ($status, $body) = ('404 Not Found', "There is nothing at this path.\n") if $path !~ m{^/(healthz)?(\?|$)};
    ($status, $body) = ('405 Method Not Allowed', "Only GET and HEAD.\n") if $method !~ /^(GET|HEAD)$/;
    print $client "HTTP/1.1 $status\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ", length($body),
        "\r\nConnection: close\r\n\r\n", $method eq 'HEAD' ? '' : $body;
    print "$method $path $status\n" if $path !~ m{^/healthz};
    close $client;
}

sub text {
    my $app = $ENV{DEIS_APP} // 'this app';
    my $release = $ENV{DEIS_RELEASE} // 'no release';
    my $host = (POSIX::uname())[1];
    my $powered = $ENV{POWERED_BY} ? "Powered by $ENV{POWERED_BY}.\n" : '';
    return "$message\nThis is $app $release on $host.\n$powered";
}
