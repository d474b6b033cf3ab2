package shimlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func texts(lines []Line) (out []string) {
	for _, l := range lines {
		out = append(out, l.Text)
	}
	return out
}

func write(t *testing.T, path, stdout, stderr string) {
	t.Helper()
	Copy(t.Context(), path, strings.NewReader(stdout), strings.NewReader(stderr))
}

func last(t *testing.T, path string, n int) []Line {
	t.Helper()
	r, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines, err := lastOf(r, n)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// lastOf reads the last n lines of a log, oldest first.
func lastOf(r *Reader, n int) (lines []Line, err error) {
	p, err := r.Past()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	for len(lines) < n {
		l, ok, err := p.Prev()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		lines = append(lines, l)
	}
	slices.Reverse(lines)
	return lines, nil
}

func TestCopy(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"lines", "one\ntwo\n", []string{"one", "two"}},
		{"no newline at the end", "one\ntwo", []string{"one", "two"}},
		{"empty lines", "\n\n", []string{"", ""}},
		{"carriage return", "one\r\n", []string{"one"}},
		{"long lines are cut", long + "y\nz\n", []string{long, "y", "z"}},
		{"bytes", "\x00\xff o e\n", []string{"\x00\xff o e"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			before := time.Now()
			write(t, path, c.in, "")
			if c.in == "" {
				if _, err := os.Stat(path); err == nil {
					t.Error("a log without lines")
				}
				return
			}
			lines := last(t, path, 10)
			if !slices.Equal(texts(lines), c.want) {
				t.Errorf("got %.100q, want %.100q", texts(lines), c.want)
			}
			for _, l := range lines {
				if l.Stderr || l.Time.Before(before.Add(-time.Millisecond)) || l.Time.After(time.Now()) {
					t.Errorf("stderr %v, time %v", l.Stderr, l.Time)
				}
			}
		})
	}
}

func TestStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "out\n", "err\n")
	write(t, path, "", "again\n") // a replacement appends
	got := map[string]bool{}
	for _, l := range last(t, path, 10) {
		got[l.Text] = l.Stderr
	}
	if want := map[string]bool{"out": false, "err": true, "again": true}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// dropNothing has writers wait for a busy machine's disk.
func dropNothing(t *testing.T) {
	before := stallTime
	stallTime = time.Hour
	t.Cleanup(func() { stallTime = before })
}

// TestTurnOver writes more than both segments hold, and reads it at once.
func TestTurnOver(t *testing.T) {
	dropNothing(t)
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "first\n", "")
	r, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := lastOf(r, 5); err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	const count = 250_000
	rd, wr := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Copy(t.Context(), path, rd, strings.NewReader(""))
	}()
	next := 0
	collect := func() {
		for {
			lines, err := r.More()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				if want := fmt.Sprintf("%06d %s", next, strings.Repeat("x", 60)); l.Text != want {
					t.Fatalf("got %q, want %q", l.Text, want)
				}
				next++
			}
			if len(lines) == 0 {
				return
			}
		}
	}
	for i := range count {
		fmt.Fprintf(wr, "%06d %s\n", i, strings.Repeat("x", 60))
		if i%5000 == 0 {
			collect()
		}
	}
	wr.Close()
	<-done
	collect()
	if next != count {
		t.Errorf("followed %d lines of %d", next, count)
	}
	for _, suffix := range []string{"", oldSuffix} {
		if st, err := os.Stat(path + suffix); err != nil || st.Size() > SegmentSize {
			t.Errorf("segment %q: %v, %v", suffix, st, err)
		}
	}
	all := last(t, path, count)
	if n := len(all); n < SegmentSize/100 || all[n-1].Text[:6] != "249999" {
		t.Errorf("%d lines kept, the last %q", n, all[n-1].Text)
	}
	for i := range all[1:] {
		if all[i].Text >= all[i+1].Text {
			t.Fatalf("%q before %q", all[i].Text, all[i+1].Text)
		}
	}
	for _, n := range []int{0, 1, 7, 1000} {
		if got := last(t, path, n); !slices.Equal(texts(got), texts(all[len(all)-n:])) {
			t.Errorf("last %d lines: got %d", n, len(got))
		}
	}
	os.Rename(path, path+oldSuffix)
	if lines, err := r.More(); len(lines) > 0 || err != nil {
		t.Errorf("between two files: %d lines, %v", len(lines), err)
	}
	os.Remove(path + oldSuffix)
	if _, err := r.More(); !errors.Is(err, io.EOF) {
		t.Errorf("removed log: %v", err)
	}
}

// TestSlowFollower: what is still there when one looks again is read, and what is not is told.
func TestSlowFollower(t *testing.T) {
	dropNothing(t)
	for _, c := range []struct {
		segments  int // begun between two looks
		wantNotes int
	}{{1, 0}, {2, 0}, {3, 1}, {6, 1}} {
		t.Run(fmt.Sprint(c.segments), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			line := func(n int) string { return fmt.Sprintf("%06d %s\n", n, strings.Repeat("x", 990)) }
			write(t, path, line(0), "")
			r, err := Open(path, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if lines, err := r.More(); len(lines) != 1 || err != nil {
				t.Fatal(lines, err)
			}
			count := c.segments*SegmentSize/1024 + SegmentSize/2048
			var text strings.Builder
			for n := range count {
				text.WriteString(line(1 + n))
			}
			write(t, path, text.String(), "")
			next, notes := 1, 0
			for {
				lines, err := r.More()
				if err != nil {
					t.Fatal(err)
				}
				if len(lines) == 0 {
					break
				}
				for _, l := range lines {
					n := 0
					switch _, err := fmt.Sscanf(l.Text, "%06d", &n); {
					case strings.HasPrefix(l.Text, "deis: lines are missing here"):
						notes, next = notes+1, -1
					case err != nil || next >= 0 && n != next:
						t.Fatalf("%.20q where line %d should be", l.Text, next)
					default:
						next = n + 1
					}
				}
			}
			if next != count+1 || notes != c.wantNotes {
				t.Errorf("read up to line %d of %d, with %d notes that lines are missing, want %d", next-1, count, notes, c.wantNotes)
			}
		})
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, 0)
	path, ballast := filepath.Join(dir, "log"), filepath.Join(dir, "ballast")
	err := os.WriteFile(ballast, make([]byte, 48<<10), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	rd, wr := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Copy(t.Context(), path, rd, strings.NewReader(""))
	}()
	for i := range 1000 {
		fmt.Fprintf(wr, "%d\n", i)
	}
	// Writes are done a moment after they were read.
	for range 2000 {
		if st, err := os.Stat(path); err == nil && st.Size() == 16<<10 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	os.Remove(ballast)
	fmt.Fprintln(wr, "after")
	wr.Close()
	<-done
	lines := last(t, path, 2000)
	missing, kept := 0, 0
	for _, l := range lines {
		n := 0
		if _, err := fmt.Sscanf(l.Text, "deis: %d lines are missing here", &n); err == nil {
			missing += n
		} else if l.Text != "after" {
			kept++
		}
	}
	// The line that met the end of the disk is there in part, and counted as missing.
	if missing == 0 || kept == 0 || kept+missing < 1000 || kept+missing > 1001 {
		t.Errorf("%d lines kept and %d said to be missing, of 1000", kept, missing)
	}
	if lines[len(lines)-1].Text != "after" {
		t.Errorf("ends with %q", lines[len(lines)-1].Text)
	}
}

// TestStallsOnce: while the disk hangs the instance is held up for stallTime, once.
func TestStallsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lines = 50_000 // of many batches
		queue, dropped := make(chan batch, 1), &atomic.Int64{}
		p := &pump{stream: streamOut, queue: queue, dropped: dropped}
		began := time.Now()
		p.run(strings.NewReader(strings.Repeat(strings.Repeat("x", 99)+"\n", lines)))
		if took := time.Since(began); took != stallTime {
			t.Errorf("held up for %v, want %v", took, stallTime)
		}
		if kept := (<-queue).lines; kept == 0 || int64(kept)+dropped.Load() != lines {
			t.Errorf("%d lines kept and %d dropped, of %d", kept, dropped.Load(), lines)
		}
	})
}

// TestHungDisk shows that a disk that hangs does not hang the instance.
func TestHungDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	rd, wr := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Copy(t.Context(), path, rd, strings.NewReader("")) // opening the FIFO hangs
	}()
	block := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 500)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range 200 {
			wr.Write(block)
		}
	}()
	select {
	case <-written:
	case <-time.After(time.Minute): // held up once for stallTime, or for ever
		t.Fatal("the instance is held up")
	}
	out, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	wr.Close()
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	kept, missing := 0, 0
	for _, l := range parseAll(text) {
		n := 0
		if _, err := fmt.Sscanf(l.Text, "deis: %d lines are missing here", &n); err == nil {
			missing += n
		} else {
			kept++
		}
	}
	if kept+missing != 200*500 || missing == 0 {
		t.Errorf("%d lines kept and %d said to be missing, of 100000", kept, missing)
	}
}

func FuzzCopy(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\nthree"))
	f.Add([]byte("2006-01-02T15:04:05.000000000Z o text\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		path := filepath.Join(t.TempDir(), "log")
		Copy(t.Context(), path, iotestOneByte{bytes.NewReader(in)}, strings.NewReader(""))
		if len(in) == 0 {
			return
		}
		var want []string
		for l := range bytes.Lines(in) {
			want = append(want, strings.TrimSuffix(strings.TrimSuffix(string(l), "\n"), "\r"))
		}
		if got := texts(last(t, path, len(want)+1)); len(in) < MaxLine && !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// iotestOneByte reads in pieces, as pipes do.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(3, len(p))]) }
