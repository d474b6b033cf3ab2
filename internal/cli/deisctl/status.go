package deisctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/deis/deis/internal/api"
	"github.com/deis/deis/internal/supervisor"
	"github.com/spf13/cobra"
)

// diskTimeout bounds how long a status waits for what is said about the disk.
const diskTimeout = 3 * time.Second

func statusCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each part: state, version, address, uptime, memory",
		Long:  "Status shows each part. It exits with 3 when one is not running.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := s.askStatus(cmd.Context())
			if errors.Is(err, errNotRunning) {
				doc, err = s.statusLeft()
			}
			if err != nil {
				return err
			}
			doc.Disk = s.askDisk(cmd.Context(), doc)
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(doc)
			} else {
				err = printStatus(cmd.OutOrStdout(), doc)
			}
			if err != nil {
				return err
			}
			return degraded(doc)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// diskDoc is what takes the disk, in bytes.
type diskDoc struct {
	api.DiskHookAnswer
	// These come from the daemons' metrics and may be five minutes old. 0 is not known.
	BuildCache      int64 `json:"build_cache,omitempty"`
	BuildCacheLimit int64 `json:"build_cache_limit,omitempty"`
	Repositories    int64 `json:"repositories,omitempty"`
	Database        int64 `json:"database,omitempty"`
}

// askDisk asks the controller what takes the disk, and the others for theirs; nil where the controller does not answer.
func (s *settings) askDisk(ctx context.Context, doc statusDoc) *diskDoc {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	disk := &diskDoc{}
	var others sync.WaitGroup
	for daemon, wanted := range map[string]map[string]*int64{
		"controller": {`deis_disk_bytes{kind="database"}`: &disk.Database},
		"builder":    {`deis_disk_bytes{kind="repositories"}`: &disk.Repositories},
		"buildkitd":  {`deis_disk_bytes{kind="build_cache"}`: &disk.BuildCache, "deis_build_cache_limit_bytes": &disk.BuildCacheLimit},
	} {
		others.Go(func() { s.readMetrics(ctx, daemon, wanted) })
	}
	defer others.Wait()
	for _, p := range doc.Parts {
		if p.Name != "controller" || p.State != supervisor.Running {
			continue
		}
		key, err := os.ReadFile(filepath.Join(s.Root, "builder.key"))
		if err != nil {
			return nil
		}
		client := &api.Client{URL: "http://" + p.Address, BuilderKey: strings.TrimSpace(string(key)), UserAgent: "deisctl"}
		if client.Call(ctx, http.MethodGet, "/v1/hooks/disk", nil, &disk.DiskHookAnswer) != nil {
			return nil
		}
		return disk
	}
	return nil
}

// readMetrics asks a daemon for metrics and fills in the wanted ones, whole numbers, that it tells in time.
func (s *settings) readMetrics(ctx context.Context, daemon string, wanted map[string]*int64) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.metricsAddr(daemon)+"/metrics", nil)
	if err != nil {
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.ParseFloat(value, 64)
		if into := wanted[name]; into != nil && err == nil {
			*into = int64(n)
		}
	}
}

// metricsAddr is where a daemon tells its metrics; "" where that is not known.
func (s *settings) metricsAddr(daemon string) string {
	text, err := os.ReadFile(s.run(targetsFile))
	if err != nil {
		return ""
	}
	var targets []target
	if json.Unmarshal(text, &targets) != nil {
		return ""
	}
	i := slices.IndexFunc(targets, func(t target) bool { return t.Labels["daemon"] == daemon && len(t.Targets) > 0 })
	if i < 0 {
		return ""
	}
	return targets[i].Targets[0]
}

// shownApps is how many apps a line about the disk names.
const shownApps = 3

func diskText(d diskDoc) string {
	text := fmt.Sprintf("Disk: %s of %s free (pushes need %s)\nImages %s + logs %s + files that instances wrote %s = %s", api.SizeText(d.Free), api.SizeText(d.Size),
		api.SizeText(d.Reserve), api.SizeText(d.Images), api.SizeText(d.Logs), api.SizeText(d.Written), api.SizeText(d.Images+d.Logs+d.Written))
	if d.Limit > 0 {
		text += " of " + api.SizeText(d.Limit)
	}
	if d.BuildCache > 0 {
		text += "; build cache " + api.SizeText(d.BuildCache) + " of " + api.SizeText(d.BuildCacheLimit)
	}
	if d.Repositories > 0 {
		text += "; repositories " + api.SizeText(d.Repositories)
	}
	if d.Database > 0 {
		text += "; database " + api.SizeText(d.Database)
	}
	for i, app := range d.Apps[:min(shownApps, len(d.Apps))] {
		text += []string{"\nLargest apps: ", ", "}[min(i, 1)] + app.App + " " + api.SizeText(app.Total())
	}
	return text
}

// statusLeft is what can be said where no supervisor runs.
func (s *settings) statusLeft() (statusDoc, error) {
	doc := statusDoc{Root: s.Root, Parts: []supervisor.Status{}}
	left, err := supervisor.Left(s.run(""), stopOrder)
	doc.Parts = append(doc.Parts, left...)
	return doc, err
}

func degraded(doc statusDoc) error {
	if doc.Supervisor == 0 {
		return &exitError{code: ExitDegraded}
	}
	for _, p := range doc.Parts {
		if p.State != supervisor.Running {
			return &exitError{code: ExitDegraded}
		}
	}
	return nil
}

func printStatus(out io.Writer, doc statusDoc) error {
	if doc.Supervisor == 0 && len(doc.Parts) == 0 {
		fmt.Fprintf(out, "Deis in %s is stopped. Start it: deisctl start --detach\n", doc.Root)
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tPID\tVERSION\tADDRESS\tUPTIME\tMEMORY\tRESTARTS")
	for _, p := range doc.Parts {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%d MB\t%d\n", p.Name, p.State, p.PID, p.Version, p.Address,
			time.Duration(p.Uptime)*time.Second, p.Memory>>20, p.Restarts)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if doc.Disk != nil {
		fmt.Fprintln(out, "\n"+diskText(*doc.Disk))
	}
	for _, p := range doc.Parts {
		if p.Reason != "" {
			fmt.Fprintf(out, "%s: %s\n", p.Name, p.Reason)
		}
	}
	if doc.Supervisor == 0 {
		fmt.Fprintln(out, "No deisctl watches over these parts. Let one take them over: deisctl start --detach")
	}
	return nil
}

// webURL is the URL of a host on a listening address, without the port if it is
// the scheme's own.
func webURL(scheme, host, addr, ownPort string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == ownPort {
		return scheme + "://" + host
	}
	return scheme + "://" + host + ":" + port
}
