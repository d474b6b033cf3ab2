package main

import (
	"fmt"
	"path/filepath"
	"testing"
)

// BenchmarkUnchanged is a build whose buildpack finds all its layers as they were. What it costs
// is what the phases add to the buildpacks' own time. layer is the size of a cached layer for launch.
func BenchmarkUnchanged(b *testing.B) {
	for _, bench := range []struct {
		name         string
		files, layer int
	}{{"small", 10, 10}, {"20000files", 20_000, 10}, {"layer20000files", 10, 20_000}} {
		b.Run(bench.name, func(b *testing.B) {
			f := newFixture(b)
			for n := range bench.files {
				f.write(filepath.Join(f.app, fmt.Sprintf("dir%d/file%d", n%200, n)), "some words of text")
			}
			f.add("x", "exit 0", fmt.Sprintf(`
[ -e a.toml ] || mkdir a
printf '[types]\nlaunch = true\ncache = true\n' >a.toml
[ -e a/0 ] || for n in $(seq 0 %d); do echo $n >a/$n; done`, bench.layer))
			f.setOrder("x")
			f.haveAll(f.build())
			for b.Loop() {
				built := f.build()
				for phase, seconds := range built.report.Phases {
					b.ReportMetric(seconds*1000, phase+"-ms")
				}
			}
		})
	}
}
