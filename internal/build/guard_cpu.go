package build

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// balanceTick is over how long the use of the CPUs is taken.
	balanceTick = time.Second
	// Builds are idle until others take more than othersMost of the CPUs, which leaves less than the third that is due to
	// builds, and again when others take less than othersAgain, which is below what weights hold them to.
	othersMost, othersAgain = 2.0 / 3, 0.5
)

// balancer watches the CPUs while there are builds. The zero value is ready.
type balancer struct {
	mu     sync.Mutex
	builds int
	stop   context.CancelFunc
}

// join is for the time of a build, until leave is called. path is that of the group of all builds.
func (b *balancer) join(path string) (leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.builds++; b.builds == 1 {
		var ctx context.Context
		ctx, b.stop = context.WithCancel(context.Background())
		go (&cgroup{path: path}).balance(ctx)
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.builds--; b.builds == 0 {
			b.stop()
		}
	}
}

// balance keeps two promises until the end of ctx: builds do not delay apps, so for the kernel they are idle; and apps that take
// all they can get leave builds a third, so then builds have a weight.
func (c *cgroup) balance(ctx context.Context) {
	tick := time.NewTicker(balanceTick)
	defer tick.Stop()
	idle := true
	last, err := c.cpuUse()
	for err == nil {
		c.setIdle(idle)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var now cpuUse
		if now, err = c.cpuUse(); err != nil {
			break
		}
		others := (now.others - last.others) / (now.all - last.all)
		last = now
		switch {
		case others > othersMost:
			idle = false
		case others < othersAgain:
			idle = true
		}
	}
	c.setIdle(false) // this kernel does not say
}

// cpuUse is in seconds of all CPUs since they were started: that there were, and that others than the builds have used.
type cpuUse struct{ all, others float64 }

func (c *cgroup) cpuUse() (cpuUse, error) {
	own, err := c.cpuTime()
	if err != nil {
		return cpuUse{}, err
	}
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return cpuUse{}, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return cpuUse{}, err
	}
	t := stat.CPUTotal // what the hypervisor stole was never there
	busy := t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ
	return cpuUse{all: busy + t.Idle + t.Iowait, others: busy - own.Seconds()}, nil
}
