/* A run that is over, played again: what the stage showed at an earlier step, and the two ways through the steps. The
   value is that of app/finished/replay.py. */
(() => {
  "use strict";

  const { clock } = window.sparsed.format;
  const TICKS = 500;

  // ---- an earlier state of the run -----------------------------------------------------------------------------------

  // clock[k]: milliseconds after k steps. states[k]: the cells after k steps; what does not change is shared.
  function laneRecord(lane, cells) {
    const record = { lane, made: lane.ms.length, clock: [0], states: [Array(cells).fill(["", 0, null, 0])] };
    lane.changes.forEach((changes, index) => {
      const next = record.states[index].slice();
      for (const [cell, text, confidence, end] of changes) next[cell] = [text, next[cell][1] || index + 1, confidence, end];
      record.states.push(next);
      record.clock.push(record.clock[index] + lane.ms[index]);
    });
    return record;
  }

  // Over the steps that a lane and the reference have done. Before the lane is sparse both do the same, but for a cache:
  // a factor would be noise.
  function speedup(lane, step, referenceStep) {
    return lane.step_rows || lane.phases.slice(0, step).includes("sparse") ? (lane.speedups[Math.min(step, referenceStep)] ?? null) : null;
  }

  // over: every lane is at its end. since: what was committed after that step is just committed.
  function laneSnapshot({ lane, made, states }, step, referenceStep, state, over, since) {
    const { finished, ranges, made: phases, ms, phases: each, kinds, changes, frames, speedups, ...fixed } = lane;
    const done = finished && step === made;
    const [progress, seconds, ms_per_step, tokens_per_second, rows, counted, ms_spread, there] = frames[step];
    return {
      ...fixed,
      ...(done ? {} : { text: null, right: null, verdict: null, ended_early: false }),
      // Before its end a lane that has a pattern to use may still use it.
      never_sparse: lane.never_sparse && (done || !ranges.some(([phase]) => phase === "sparse")),
      state: done ? "done" : state,
      phase: step ? each[step - 1] : "dense",
      kind: step ? kinds[step - 1] : "dense",
      phases: done ? phases : ranges,
      step,
      progress: done ? 1 : progress,
      seconds,
      ms_per_step,
      ms_spread,
      there,
      tokens_per_second,
      rows,
      counted,
      step_rows: lane.step_rows && lane.step_rows.slice(0, step),
      cells: states[step],
      speedup: over ? lane.speedup : speedup(lane, step, referenceStep),
      same: over ? lane.same : null,
      since,
    };
  }

  // The stage after steps[i] steps of lane i.
  function snapshot(value, records, steps, since) {
    const over = records.every((record, i) => steps[i] === record.made);
    const state = over ? value.state : "running";
    const { autoplay, way, cells, ...fixed } = value;
    const referenceStep = steps[records.findIndex((record) => record.lane.key === value.reference)] ?? 0;
    const lanes = records.map((record, i) => laneSnapshot(record, steps[i], referenceStep, state, over, since[i]));
    const large = lanes.find((lane) => lane.key === value.headline);
    return {
      ...fixed,
      ...(over ? {} : { message: "", speedup: large ? large.speedup : null, agreement: null, gold: null }),
      state,
      lanes,
    };
  }

  // ---- the two ways to play ----------------------------------------------------------------------------------------
  // `after`: the moment at which a lane has done so many steps.

  // How many entries of a growing list, the first one left out, are at most `time`.
  function passed(clockList, time) {
    let low = 0;
    let high = clockList.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (clockList[middle] <= time) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Every lane at the same step; a step lasts as long as in the slower lane.
  // headline: the key of the lane whose phase is said.
  function inStep(records, headline) {
    const most = Math.max(...records.map((record) => record.made));
    const ends = [0];
    for (let step = 0; step < most; step += 1) {
      ends.push(ends[step] + Math.max(0.01, ...records.map((record) => record.lane.ms[step] ?? 0)));
    }
    const spent = (step) => Math.max(...records.map((record) => record.clock[Math.min(step, record.made)]));
    const leading = records.find((record) => record.lane.key === headline) || records[0];
    return {
      name: "Step",
      duration: ends[most],
      most,
      steps: (time) => records.map((record) => Math.min(passed(ends, time), record.made)),
      value: (time) => passed(ends, time),
      time: (place) => ends[place],
      after: (lane, step) => ends[Math.max(0, Math.min(most, step))],
      shown: (time) => `step ${passed(ends, time)} of ${most} · ${clock(spent(passed(ends, time)) / 1000)}`,
      said(time) {
        const step = passed(ends, time);
        return `step ${step} of ${most}: ${step ? leading.lane.phases[Math.min(step, leading.made) - 1] : "not begun"}`;
      },
    };
  }

  // Each lane by its own clock.
  function asItHappened(records) {
    const duration = Math.max(...records.map((record) => record.clock[record.made]));
    const steps = (time) => records.map((record) => passed(record.clock, time));
    const of = `of ${clock(duration / 1000)}`;
    return {
      name: "Time",
      duration,
      most: TICKS,
      steps,
      value: (time) => (duration ? Math.round((TICKS * time) / duration) : TICKS),
      time: (place) => (place === TICKS ? duration : (duration * place) / TICKS),
      after(lane, step) {
        const record = records.find((each) => each.lane.key === lane) || records[0];
        return record.clock[Math.max(0, Math.min(record.made, step))];
      },
      shown: (time) => `${clock(time / 1000)} ${of}`,
      said(time) {
        const at = steps(time).map((step, i) => `${records[i].lane.label} at step ${step} of ${records[i].lane.total}`);
        return `${clock(time / 1000)} ${of}: ${at.join(", ")}`;
      },
    };
  }

  window.sparsed.tools.playback = { laneRecord, snapshot, inStep, asItHappened };
})();
