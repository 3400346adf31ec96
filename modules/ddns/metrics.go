package ddns

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	updatesMetric = prometheus.NewDesc("caddy_ddns_updates_total", "Counts how often a record was set, and how often that failed or lasting trouble kept it from being set.", []string{"domain", "type", "result"}, nil)
	successMetric = prometheus.NewDesc("caddy_ddns_last_success_timestamp_seconds", "When a record was last set.", []string{"domain", "type"}, nil)
)

// collector exports what is known of the records of a configuration. What it counts
// goes on through a reload.
type collector struct{ updates []*updater }

// collect adds the app's records to the configuration's metrics.
func (a *App) collect() error {
	if len(a.updates) == 0 {
		return nil
	}
	registry := a.ctx.GetMetricsRegistry()
	if registry == nil {
		return nil
	}
	return registry.Register(collector{a.updates})
}

// Describe sends the metrics' descriptions.
func (collector) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- updatesMetric
	descriptions <- successMetric
}

// Collect sends the metrics' values.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	for _, u := range c.updates {
		u.record.mu.Lock()
		updated, failed, at := u.record.updated, u.record.failed, u.record.at
		u.record.mu.Unlock()
		count := func(value uint64, result string) {
			metrics <- prometheus.MustNewConstMetric(updatesMetric, prometheus.CounterValue, float64(value), u.target.name, u.family.record, result)
		}
		count(updated, "updated")
		count(failed, "failed")
		if !at.IsZero() {
			metrics <- prometheus.MustNewConstMetric(successMetric, prometheus.GaugeValue, float64(at.Unix()), u.target.name, u.family.record)
		}
	}
}
