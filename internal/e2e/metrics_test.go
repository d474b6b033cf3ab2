package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const docs = "../../docs"

// A platform in use: every daemon shows the metrics that docs/monitoring.md lists and no others, with
// these types and labels, and nothing that is secret.
func TestMetricsAreAsDocumented(t *testing.T) {
	const secret = "metrics-must-not-show-this"
	u := shared.newUser(t, "metrics")
	dir := u.newApp(t, "e2e-metrics")
	u.push(t, dir, "one")
	u.must(t, dir, "deis", "config:set", "PASSWORD="+secret)
	if _, body, err := shared.get(t.Context(), shared.client(false), "e2e-metrics.localhost", "/"); err != nil || !strings.Contains(body, "message=one") {
		t.Fatal(body, err)
	}
	documented := documentedMetrics(t)
	for daemon, addr := range shared.metrics(t) {
		text := scrapeText(t, addr)
		for _, word := range []string{secret, "PASSWORD", readFile(t, filepath.Join(shared.root, "builder.key"))} {
			if strings.Contains(text, strings.TrimSpace(word)) {
				t.Errorf("%s shows %q", daemon, word[:4])
			}
		}
		got := families(text)
		for name, m := range got {
			want, ok := documented[name]
			switch {
			case !ok:
				t.Errorf("%s: %s is not documented", daemon, name)
			case !slices.Contains(want.daemons, daemon):
				t.Errorf("%s has %s, which is documented for %v", daemon, name, want.daemons)
			case m.kind != want.kind:
				t.Errorf("%s is a %s, documented as %s", name, m.kind, want.kind)
			}
			for label := range m.labels {
				if label != "le" && !slices.Contains(want.labels, label) {
					t.Errorf("%s has a label %s, documented are %v", name, label, want.labels)
				}
			}
		}
		for name, want := range documented {
			if slices.Contains(want.daemons, daemon) && got[name].kind == "" && !optional[name] {
				t.Errorf("%s does not show %s", daemon, name)
			}
		}
	}
}

// optional are those that may have nothing to say.
var optional = map[string]bool{"deis_certificate_expiry_timestamp_seconds": true}

// The dashboard and the alerts ask for nothing that there is not.
func TestDashboardAndAlertsUseMetricsThatThereAre(t *testing.T) {
	documented := documentedMetrics(t)
	exprs := dashboardExprs(t)
	for name, expr := range alertExprs(t) {
		exprs[name] = expr
	}
	used := map[string]bool{}
	for where, expr := range exprs {
		for _, fault := range checkExpr(expr, documented, used) {
			t.Errorf("%s: %s: %s", where, fault, expr)
		}
	}
	for name := range documented {
		if !used[name] && !unused[name] {
			t.Errorf("%s is on no panel and in no alert", name)
		}
	}
}

// unused are for closer looks.
var unused = map[string]bool{"deis_router_access_log_dropped_total": true, "deis_build_cache_limit_bytes": true}

// The check of expressions finds what is wrong with them.
func TestExpressionsAreChecked(t *testing.T) {
	documented := documentedMetrics(t)
	for expr, want := range map[string]string{
		`sum(rate(deis_rollouts_total{kind="x"}[5m]))`:                                                   "",
		`histogram_quantile(0.9, sum by (le) (rate(deis_router_wait_seconds_bucket[$__rate_interval])))`: "",
		`deis_no_such_total`:                            "no metric",
		`rate(deis_router_wait_seconds[5m])`:            "without _bucket",
		`deis_rollouts_total_bucket`:                    "no metric",
		`deis_rollouts_total{color="x"}`:                "no label",
		`sum by (color) (deis_rollouts_total)`:          "no label",
		`sum(rate(deis_rollouts_total[5m])`:             "parentheses",
		`deis_rollouts_total{kind="x"`:                  "parentheses",
		`deis_rollouts_total[5m`:                        "parentheses",
		`frobnicate(deis_rollouts_total)`:               "no function",
		`deis_rollouts_total{kind="a)"} > 1 and up`:     "",
		`deis_rollouts_total deis_rollouts_running[1m]`: "nothing between",
	} {
		faults := strings.Join(checkExpr(expr, documented, map[string]bool{}), "; ")
		if (want == "") != (faults == "") || !strings.Contains(faults, want) {
			t.Errorf("%s: %q, want %q", expr, faults, want)
		}
	}
}

// metric is what is known of one family.
type metric struct {
	kind   string
	labels map[string]bool
}

type documentedMetric struct {
	kind            string
	daemons, labels []string
}

// documentedMetrics reads the table.
func documentedMetrics(t *testing.T) map[string]documentedMetric {
	t.Helper()
	all := map[string]documentedMetric{}
	for line := range strings.Lines(readFile(t, filepath.Join(docs, "monitoring.md"))) {
		cells := strings.Split(line, "|")
		if len(cells) != 7 || !strings.HasPrefix(cells[2], " `deis_") {
			continue
		}
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " `\n")
		}
		if _, twice := all[cells[2]]; twice || cells[5] == "" {
			t.Errorf("%s is documented twice or without a meaning", cells[2])
		}
		all[cells[2]] = documentedMetric{
			kind: cells[3], daemons: strings.Split(cells[1], ", "), labels: strings.Split(cells[4], ", "),
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d metrics found in the table", len(all))
	}
	return all
}

func scrapeText(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(text)
}

var (
	sample = regexp.MustCompile(`^(deis_[a-z0-9_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? [^ ]+$`)
	label  = regexp.MustCompile(`(?:^|,)([a-z_]+)="`)
)

// families reads the text format, those of our own.
func families(text string) map[string]metric {
	all := map[string]metric{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "deis_") {
			all[f[2]] = metric{kind: f[3], labels: map[string]bool{}}
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		known, ok := all[m[1]]
		if !ok { // a name that ends like a part of a histogram
			known = all[strings.Fields(strings.SplitN(line, "{", 2)[0])[0]]
		}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			known.labels[l[1]] = true
		}
	}
	return all
}

func dashboardExprs(t *testing.T) map[string]string {
	t.Helper()
	var doc struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(docs, "grafana", "deis.json"))), &doc); err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	for _, p := range doc.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for i, target := range p.Targets {
			exprs[fmt.Sprintf("panel %q %d", p.Title, i)] = target.Expr
		}
	}
	if len(exprs) < 30 {
		t.Fatalf("only %d expressions found in the dashboard", len(exprs))
	}
	return exprs
}

func alertExprs(t *testing.T) map[string]string {
	t.Helper()
	var doc struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(readFile(t, filepath.Join(docs, "prometheus", "alerts.yaml"))), &doc); err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	for _, g := range doc.Groups {
		for _, r := range g.Rules {
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s has severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what it is and what to do", r.Alert)
			}
			exprs["alert "+r.Alert] = r.Expr
		}
	}
	if len(exprs) < 10 {
		t.Fatalf("only %d alerts found", len(exprs))
	}
	return exprs
}

// targetLabels are those that Prometheus adds, and of histograms.
var targetLabels = []string{"job", "instance", "daemon", "le"}

// words of PromQL that are no metrics.
var (
	functions = strings.Fields("sum rate increase histogram_quantile topk absent time vector max min count avg")
	operators = strings.Fields("and or unless")
	grouping  = strings.Fields("by without on ignoring")
	token     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\$?[a-zA-Z_][a-zA-Z0-9_]*|[0-9.]+[a-z]*|[!=<>]=|=~|!~|[^\s]`)
)

// checkExpr is a small part of PromQL's grammar: parentheses match, functions exist, metrics and labels are those
// that there are. It notes the metrics that are used.
func checkExpr(expr string, documented map[string]documentedMetric, used map[string]bool) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	labels := slices.Clone(targetLabels)
	var inside []string // what has been opened
	var asked []string  // labels
	operand := false    // the last token ended one
	tokens := token.FindAllString(expr, -1)
	for i, tok := range tokens {
		next := ""
		if i+1 < len(tokens) {
			next = tokens[i+1]
		}
		top := ""
		if len(inside) > 0 {
			top = inside[len(inside)-1]
		}
		switch {
		case strings.Contains("([{", tok):
			if tok == "(" && i > 0 && slices.Contains(grouping, tokens[i-1]) {
				tok = "labels"
			}
			inside = append(inside, tok)
			operand = false
		case strings.Contains(")]}", tok):
			if !slices.Contains([]string{"()", "[]", "{}", "labels)"}, top+tok) {
				fault("parentheses do not match")
				return faults
			}
			inside = inside[:len(inside)-1]
			operand = top != "labels"
		case top == "{" || top == "labels":
			if name := regexp.MustCompile(`^[a-z_]+$`); name.MatchString(tok) {
				asked = append(asked, tok)
			}
		case top == "[":
		case slices.Contains(operators, tok), slices.Contains(grouping, tok), strings.Contains("+-*/,", tok), strings.ContainsAny(tok, "<>="):
			operand = false
		case next == "(" || slices.Contains(functions, tok) && slices.Contains(grouping, next):
			if !slices.Contains(functions, tok) {
				fault("no function %s", tok)
			}
			operand = false
		case regexp.MustCompile(`^[0-9.]`).MatchString(tok):
			operand = true
		default:
			if operand {
				fault("nothing between %s and what is before it", tok)
			}
			operand = true
			found, why := findMetric(tok, documented)
			if why != "" {
				fault("%s", why)
			}
			used[found] = true
			labels = append(labels, documented[found].labels...)
		}
	}
	if len(inside) > 0 {
		fault("parentheses do not match")
	}
	for _, name := range asked {
		if !slices.Contains(labels, name) {
			fault("no label %s", name)
		}
	}
	return faults
}

// findMetric returns the family of a series.
func findMetric(name string, documented map[string]documentedMetric) (family, fault string) {
	if name == "up" || name == "process_cpu_seconds_total" {
		return "", ""
	}
	if m, ok := documented[name]; ok {
		if m.kind == "histogram" {
			return name, name + " without _bucket, _sum or _count"
		}
		return name, ""
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && documented[base].kind == "histogram" {
			return base, ""
		}
	}
	return "", "no metric " + name
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
