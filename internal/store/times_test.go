package store

import (
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/deis/deis/internal/paas"
)

func TestObserveHearsEveryClass(t *testing.T) {
	s := open(t, t.TempDir())
	var mu sync.Mutex
	heard := map[Class]int{}
	s.Observe(func(c Class, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		heard[c]++
		if took < 0 {
			t.Errorf("%s took %v", c, took)
		}
	})
	if _, err := s.AllApps(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(heard, map[Class]int{Read: 1}) {
		t.Errorf("after one query: %v", heard)
	}
	if _, err := s.CreateUser(t.Context(), paas.User{Username: "alice"}, "secret"); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(heard, map[Class]int{Read: 1, Write: 1, Wait: 1, Commit: 1}) {
		t.Errorf("after one transaction: %v", heard)
	}
}

func TestCertificateEnds(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.CreateUser(t.Context(), paas.User{Username: "alice"}, "secret"); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	for name, in := range map[string]time.Duration{"past": -time.Hour, "soon": time.Hour, "sooner": time.Minute, "late": 1000 * time.Hour} {
		c := paas.Certificate{Owner: "alice", CommonName: name, Expires: now.Add(in)}
		if err := s.CreateCertificate(t.Context(), &c, ""); err != nil {
			t.Fatal(err)
		}
	}
	ends, err := s.CertificateEnds(t.Context(), now, now.Add(24*time.Hour), 10)
	if err != nil || len(ends) != 2 || !ends["soon"].Equal(now.Add(time.Hour)) || !ends["sooner"].Equal(now.Add(time.Minute)) {
		t.Errorf("%v, %v", ends, err)
	}
	if first, err := s.CertificateEnds(t.Context(), now, now.Add(24*time.Hour), 1); err != nil || len(first) != 1 || first["sooner"].IsZero() {
		t.Errorf("the first is %v, %v", first, err)
	}
}
