package router

import (
	"hash/maphash"
	"iter"
	"maps"
	"sync/atomic"
)

// shardCount makes a change copy some ten entries at 10,000 hosts and a
// hundred at 100,000, so that its cost is hardly that of the table.
const shardCount = 1024

// cowMap is a map that is read without locks: each shard is a small map that is
// never written again once it is published. Writers must exclude each other.
type cowMap[V any] struct {
	seed   maphash.Seed
	shards [shardCount]atomic.Pointer[map[string]V]
}

func newCOWMap[V any]() *cowMap[V] {
	return &cowMap[V]{seed: maphash.MakeSeed()}
}

func (m *cowMap[V]) shard(key string) uint64 {
	return maphash.String(m.seed, key) % shardCount
}

// get returns the zero V for an unknown key.
func (m *cowMap[V]) get(key string) V {
	shard := m.shards[m.shard(key)].Load()
	if shard == nil {
		var none V
		return none
	}
	return (*shard)[key]
}

// all goes over the entries, in no order. It sees each shard as it is when it
// comes to it.
func (m *cowMap[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for i := range m.shards {
			shard := m.shards[i].Load()
			if shard == nil {
				continue
			}
			for k, v := range *shard {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// edit collects changes, so that each shard is copied once however many of its
// keys change.
type edit[V any] struct {
	m     *cowMap[V]
	fresh map[uint64]map[string]V
}

func (m *cowMap[V]) edit() *edit[V] {
	return &edit[V]{m: m, fresh: map[uint64]map[string]V{}}
}

func (e *edit[V]) copyOf(key string) map[string]V {
	i := e.m.shard(key)
	fresh, ok := e.fresh[i]
	if !ok {
		if old := e.m.shards[i].Load(); old != nil {
			fresh = maps.Clone(*old)
		} else {
			fresh = map[string]V{}
		}
		e.fresh[i] = fresh
	}
	return fresh
}

// get sees what the edit has changed already.
func (e *edit[V]) get(key string) V {
	if fresh, ok := e.fresh[e.m.shard(key)]; ok {
		return fresh[key]
	}
	return e.m.get(key)
}

func (e *edit[V]) set(key string, v V) { e.copyOf(key)[key] = v }
func (e *edit[V]) delete(key string)   { delete(e.copyOf(key), key) }

// publish makes the changes visible, shard by shard.
func (e *edit[V]) publish() {
	for i, fresh := range e.fresh {
		e.m.shards[i].Store(&fresh)
	}
}
