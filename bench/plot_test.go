package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
)

// Plots name what they show, are well-formed, and are the same again from the
// same file.
func TestPlots(t *testing.T) {
	r := someOpenResults()
	path, err := r.save(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, r.savePlots(path))
	for name, words := range map[string][]string{
		"cpu":     {nameRing, nameEpoll, reference, r.Loads[0].Name, r.Loads[1].Name},
		"engines": {"connections", ">64<"},
		"latency": {nameRing, nameEpoll, reference, "requests per second"},
	} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), plotsDir, "20261122T200000Z-"+name+".svg"))
		require.NoError(t, err)
		for _, word := range words {
			require.Contains(t, string(text), word, name)
		}
		require.NotContains(t, string(text), "NaN", name)
		d := xml.NewDecoder(bytes.NewReader(text))
		for err == nil {
			_, err = d.Token()
		}
		require.True(t, errors.Is(err, io.EOF), "%s: %v", name, err)
	}

	first, err := r.drawAll(path)
	require.NoError(t, err)
	for range 3 {
		loaded, err := loadResults(path)
		require.NoError(t, err)
		again, err := loaded.drawAll(path)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	loaded, err := loadResults(path)
	require.NoError(t, err)
	for i := range loaded.Runs {
		loaded.Runs[i].ProxyNS += int64(i) * 1e6
	}
	other, err := loaded.drawAll(path)
	require.NoError(t, err)
	require.NotEqual(t, first, other)
	require.Equal(t, first[plotFile(path, &drawings[2])], other[plotFile(path, &drawings[2])])
}

// Only what is there is drawn, and linked.
func TestPlotsOfParts(t *testing.T) {
	for _, c := range []struct {
		r     *Results
		names string
	}{
		{&Results{}, ""},
		{&Results{Loads: loads, Programs: someResults().Programs, Open: &OpenResults{Programs: someResults().Programs}}, ""},
		{someResults(), "cpu engines"},
		{&Results{Open: someOpenResults().Open}, "latency"},
	} {
		all, err := c.r.drawAll("x.json")
		require.NoError(t, err)
		var w strings.Builder
		c.r.writePlots(&w, "x.json")
		var names []string
		for i := range drawings {
			if all[plotFile("x.json", &drawings[i])] != nil {
				names = append(names, drawings[i].name)
				require.Contains(t, w.String(), "(bench/results/plots/x-"+drawings[i].name+".svg)")
			}
		}
		require.Equal(t, c.names, strings.Join(names, " "))
		require.Equal(t, len(names), strings.Count(w.String(), "!["))
	}
}

// What was committed can be read, and is what its plots were drawn from.
func TestCommittedResults(t *testing.T) {
	files, err := filepath.Glob("results/*.json")
	require.NoError(t, err)
	for _, file := range files {
		r, err := loadResults(file)
		require.NoError(t, err)
		if runtime.GOARCH != "amd64" {
			continue // rounds differently: see plotsDir
		}
		all, err := r.drawAll(file)
		require.NoError(t, err)
		for name, want := range all {
			got, err := os.ReadFile(filepath.Join("results", plotsDir, name))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			require.NoError(t, err)
			require.Equal(t, string(want), string(got), "bin/bench table bench/%s draws it again", file)
		}
	}
	plots, err := filepath.Glob(filepath.Join("results", plotsDir, "*.svg"))
	require.NoError(t, err)
	for _, plot := range plots {
		name := filepath.Base(plot)
		require.FileExists(t, filepath.Join("results", name[:strings.IndexByte(name, '-')]+".json"), "the results of %s are gone: remove it", name)
	}
}

func TestDecimalTicks(t *testing.T) {
	require.Equal(t, []plot.Tick{{Value: 50, Label: "50"}, {Value: 100, Label: "100"}, {Value: 200, Label: "200"}}, decimalTicks{}.Ticks(30, 400))
}
