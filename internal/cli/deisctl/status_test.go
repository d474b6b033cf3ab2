package deisctl

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/supervisor"
)

// TestStatusShowsTheDisk: what the controller says, and what the daemons' metrics tell of the rest.
func TestStatusShowsTheDisk(t *testing.T) {
	controller := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/hooks/disk" || r.Header.Get(api.HeaderBuilderAuth) != "secret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, `{"size":107374182400,"free":53687091200,"reserve":5368709120,"images":3221225472,"logs":1073741824,"written":536870912,"limit":10737418240,
			"apps":[{"app":"shop","images":2147483648,"logs":1073741824,"written":536870912}]}`)
	}))
	defer controller.Close()
	var targets []target
	for daemon, text := range map[string]string{
		"builder":   "# HELP deis_disk_bytes What takes the disk.\ndeis_disk_bytes{kind=\"repositories\"} 5.24288e+06\n",
		"buildkitd": "deis_build_cache_limit_bytes 1.073741824e+10\ndeis_disk_bytes{kind=\"build_cache\"} 2.147483648e+09\n",
	} {
		metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }))
		defer metrics.Close()
		targets = append(targets, target{[]string{metrics.Listener.Addr().String()}, map[string]string{"daemon": daemon}})
	}
	s := &settings{Root: t.TempDir()}
	if err := os.MkdirAll(s.run(""), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeTargets(s.run(targetsFile), targets); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root, "builder.key"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	doc := statusDoc{Supervisor: 1, Parts: []supervisor.Status{
		{Name: "controller", State: supervisor.Running, Address: controller.Listener.Addr().String()},
	}}
	if doc.Disk = s.askDisk(t.Context(), doc); doc.Disk == nil {
		t.Fatal("nothing is known of the disk")
	}
	var out strings.Builder
	if err := printStatus(&out, doc); err != nil {
		t.Fatal(err)
	}
	want := `
Disk: 50G of 100G free (pushes need 5.0G)
Images 3.0G + logs 1.0G + files that instances wrote 512M = 4.5G of 10G; build cache 2.0G of 10G; repositories 5M
Largest apps: shop 3.5G
`
	if !strings.HasSuffix(out.String(), want) {
		t.Errorf("status says\n%s\nwant at its end\n%s", out.String(), want)
	}
}
