package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestDiskUsageIsLookedAtWhenAskedAndNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks, size, broken := 0, int64(7), error(nil)
		reg := prometheus.NewRegistry()
		err := DiskUsage(reg, "images", func(context.Context) (int64, error) { looks++; return size, broken })
		if err != nil {
			t.Fatal(err)
		}
		if err := DiskUsage(reg, "logs", func(context.Context) (int64, error) { return 0, errors.New("away") }); err != nil {
			t.Fatal(err)
		}
		shown := func() (values []float64) {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					values = append(values, m.GetGauge().GetValue())
				}
			}
			return values
		}
		if looks != 0 {
			t.Error("looked before it was asked")
		}
		for range 3 {
			if got := shown(); len(got) != 1 || got[0] != 7 { // what is not known is left out
				t.Fatalf("shown are %v, want 7", got)
			}
		}
		if looks != 1 {
			t.Errorf("looked %d times for three scrapes", looks)
		}
		time.Sleep(diskAge + time.Second)
		if size, broken = 8, errors.New("away"); shown()[0] != 7 {
			t.Error("what was known is forgotten by a failure")
		}
		if broken = nil; shown()[0] != 8 {
			t.Error("not looked at again")
		}
	})
}

func TestDirSize(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "sub/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := DirSize(t.Context(), dir); err != nil || size < 200_000 || size > 400_000 {
		t.Errorf("%d bytes, %v", size, err)
	}
	if size, err := DirSize(t.Context(), filepath.Join(dir, "none")); err != nil || size != 0 {
		t.Errorf("what is not there takes %d bytes, %v", size, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := DirSize(ended, dir); err == nil {
		t.Error("went on after the end of its context")
	}
}
