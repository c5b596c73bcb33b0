//go:build wan

package main

import (
	"testing"
	"time"

	"modmirror/replicate/replicatetest/wannet"
)

// Whatever the network between the zones does: no artifact that was answered as committed is lost, none contradicts another, no
// node fails to answer with what it held before, and the leadership does not change more often than the network.
func TestWANBadWeather(t *testing.T) {
	s := newWANRun(t, 62)
	s.begin()
	for _, n := range s.nodes {
		s.mustPublish(time.Minute, n, s.new(50<<10))
	}
	s.same(time.Minute)
	for _, tt := range []struct {
		name  string
		lasts time.Duration
		few   int // changes of the leader
		begin func(lead string)
		turn  func(lead string, i int) // every 10 s
		least int                      // versions that are committed by clients of zones that can
		deaf  bool                     // the zone that led is as good as lost
	}{
		{name: "nothing arrives from the leader's zone", lasts: 25 * time.Second, few: 3, deaf: true, least: 3, begin: func(lead string) {
			for _, z := range s.otherZones(lead) {
				s.net.Set(lead, z, wannet.Policy{Block: true})
			}
		}},
		{name: "nothing arrives in the leader's zone", lasts: 25 * time.Second, few: 3, deaf: true, least: 3, begin: func(lead string) {
			for _, z := range s.otherZones(lead) {
				s.net.Set(z, lead, wannet.Policy{Block: true})
			}
		}},
		{name: "30 percent of all packets are lost", lasts: 40 * time.Second, few: 3, least: 1, begin: func(string) {
			bad := farAway
			bad.Loss = 0.3
			s.between(bad)
		}},
		{name: "200 ms of jitter", lasts: 30 * time.Second, few: 2, least: 3, begin: func(string) {
			bad := farAway
			bad.Jitter = 200 * time.Millisecond
			s.between(bad)
		}},
		{name: "a zone that flaps", lasts: 2 * time.Minute, few: 12, deaf: true, least: 20, turn: func(lead string, i int) {
			if i%2 == 0 {
				s.cutOff(lead)
			} else {
				s.calmWeather()
			}
		}},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			defer s.in(t)()
			lead, term := s.leading(s.nodes)
			zone, elected := s.zoneOf[lead], s.elected()
			l := s.live(s.paths(), s.zones...)
			if tt.begin != nil {
				tt.begin(zone)
			}
			s.pass(tt.lasts, func(i int) {
				if tt.turn != nil {
					tt.turn(zone, i)
				}
			})
			made := l.end(t)
			s.calmWeather()
			t.Logf("all are the same %v after it", s.same(2*time.Minute).Round(time.Millisecond))
			if tt.deaf {
				delete(made, zone)
			}
			if sum := made["z1"] + made["z2"] + made["z3"]; sum < tt.least {
				t.Errorf("%d new versions were committed, want %d at least", sum, tt.least)
			}
			s.calm(term, elected, tt.few)
			s.kept()
		}) {
			return // what follows would be about the same
		}
	}
	s.sound(t)
}
