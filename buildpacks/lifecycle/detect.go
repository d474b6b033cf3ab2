package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/buildpacks/lifecycle/buildpack"
	"github.com/buildpacks/lifecycle/phase"
	"github.com/buildpacks/lifecycle/platform"
)

// detect finds the first group of buildpacks that fits the app.
func (b *builder) detect() error {
	factory := phase.NewHermeticFactory(platformAPI, b.store, configFiles{analyzed: b.analyzed, order: b.order}, b.store)
	detector, err := factory.NewDetector(platform.LifecycleInputs{
		AppDir: b.app, BuildConfigDir: b.buildConfig, PlatformDir: b.platform,
	}, quiet)
	if err != nil {
		return err
	}
	b.group, b.plan, err = detector.Detect()
	if err != nil {
		return b.notDetected(detector, err)
	}
	return nil
}

// name is a buildpack's for people.
func (b *builder) name(element buildpack.GroupElement) (string, error) {
	d, err := b.store.LookupBp(element.ID, element.Version)
	if err != nil {
		return "", err
	}
	if d.Buildpack.Name != "" {
		return d.Buildpack.Name, nil
	}
	return element.ID, nil
}

// notDetected says for each buildpack that was tried why it does not fit. For those that erred
// it is all they printed.
func (b *builder) notDetected(detector *phase.Detector, err error) error {
	failure := new(buildpack.Error)
	if !errors.As(err, &failure) {
		return err
	}
	erred := failure.Type == buildpack.ErrTypeBuildpack
	var reasons []string
	for _, element := range b.flatten(b.order, map[string]bool{}) {
		name, err := b.name(element)
		if err != nil {
			return err
		}
		r, asked := result(detector, element)
		broken := r.Err != nil || r.Code != phase.CodeDetectPass && r.Code != phase.CodeDetectFail
		switch {
		case !asked:
		case erred && broken && r.Err != nil:
			reasons = append(reasons, fmt.Sprintf("%s: %s", name, r.Err), strings.TrimRight(string(r.Output), "\n"))
		case erred && broken:
			reasons = append(reasons, fmt.Sprintf("%s: detection failed with exit status %d", name, r.Code), strings.TrimRight(string(r.Output), "\n"))
		case erred:
		case r.Code == phase.CodeDetectPass:
			reasons = append(reasons, name+": fits, but needs what no other buildpack provides")
		default:
			reasons = append(reasons, fmt.Sprintf("%s: %s", name, orElse(lastLine(r.Output), "does not fit, and says not why")))
		}
	}
	code := platform.FailedDetect
	if erred {
		code = platform.FailedDetectWithErrors
	}
	return &statusError{exitCode(code), strings.Join(reasons, "\n")}
}

// flatten lists the buildpacks of an order, each once, without those that only group others.
func (b *builder) flatten(order buildpack.Order, seen map[string]bool) []buildpack.GroupElement {
	var all []buildpack.GroupElement
	for _, group := range order {
		for _, element := range group.Group {
			if seen[element.String()] {
				continue
			}
			seen[element.String()] = true
			d, err := b.store.LookupBp(element.ID, element.Version)
			switch {
			case err != nil: // cannot be: detection looked it up before
			case len(d.Order) > 0:
				all = append(all, b.flatten(d.Order, seen)...)
			default:
				all = append(all, element)
			}
		}
	}
	return all
}

// result is what a buildpack's bin/detect gave.
func result(detector *phase.Detector, element buildpack.GroupElement) (r buildpack.DetectOutputs, asked bool) {
	found, _ := detector.Runs.Load(buildpack.KindBuildpack + " " + element.String())
	r, asked = found.(buildpack.DetectOutputs)
	return r, asked
}

func lastLine(output []byte) string {
	text := strings.TrimSpace(string(output))
	return strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
