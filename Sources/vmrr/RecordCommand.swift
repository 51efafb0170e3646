import ArgumentParser
import Foundation
import Recorder
import Replay
import Trace
import VMCore

struct RecordCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "record", abstract: "Runs a guest and records everything that enters it into a trace.")

    @OptionGroup var guest: GuestOptions

    @Option(name: .shortAndLong, help: ArgumentHelp("The trace to write. Default: GUEST-DATE-TIME.vmrr here.",
                                                    valueName: "file"))
    var output: String?

    @Flag(help: "Replace the trace if it exists.")
    var force = false

    @Flag(help: "Repeat until the guest fails, and keep that run.")
    var untilFailure = false

    @Option(help: ArgumentHelp("With --until-failure: give up after this many runs.", valueName: "n"))
    var maxRuns: Int = 1000

    @Option(help: ArgumentHelp("Delay timer interrupts by random spans made from this seed; each run uses the next one.",
                               valueName: "seed"))
    var varyTiming: UInt64?

    @OptionGroup var checkpoints: CheckpointOptions

    @Option(help: ArgumentHelp("Flight recorder: keep the tail only, at least so much time (30s) or a file of at most so "
        + "many bytes (512MiB) and one checkpoint.", valueName: "time|size"))
    var keep: String?

    @Option(help: ArgumentHelp("With --keep: leave a trace only if the guest fails (failure), or only the copies that "
        + "SIGUSR1 asks for (signal).", valueName: "failure|signal"))
    var saveOn: SaveOn?

    enum SaveOn: String, ExpressibleByArgument {
        case failure, signal
    }

    @Flag(help: ArgumentHelp("Compare all memory at each checkpoint.", visibility: .private))
    var checkWrites = false

    @Flag(help: "Print a report in JSON on standard output; the guest's console goes to standard error.")
    var json = false

    func validate() throws {
        guard maxRuns > 0 else { throw ValidationError("--max-runs takes a number from 1") }
        if guest.onReboot == .restart, untilFailure || keep != nil {
            throw ValidationError("--on-reboot restart goes with neither --until-failure nor --keep: each boot is a trace")
        }
        if saveOn != nil, keep == nil { throw ValidationError("--save-on goes with --keep") }
        if keep != nil, checkpoints.checkpointEvery == "none" {
            throw ValidationError("--keep needs checkpoints: it drops what comes before one")
        }
    }

    func run() throws {
        try reporting {
            var configuration = try guest.machine()
            if configuration.timestamps == .pass, guest.engine.choice != .soft, !guest.allowNondeterminism {
                throw UsageError("--timestamps pass lets the guest read what can't be recorded; "
                    + "add --allow-nondeterminism to record all the same")
            }
            var options = try guest.world.runOptions()
            let path = try unused(output ?? Self.defaultName(guest.name))
            let host = try guest.engine.open()
            options.live.clock = guest.world.clock(on: host)
            if json { options.consoleDescriptor = 2 }
            let stopper = Stopper()
            options.started = { stopper.attach($0) }
            let saver = TraceSaver(beside: path)
            options.recording = { saver.attach($0) }
            options.finishing = { _ = saver.finish() }
            let watches = [
                SignalWatch { stopper.stop() }, SignalWatch([SIGUSR1], on: saver.queue) { saver.saveNow() },
            ]
            var recording = Recording(path: path, guest: guest.name, commandLine: CommandLine.arguments,
                                      version: VMRR.version)
            recording.overwrite = force
            recording.checksWrites = checkWrites
            recording.checkpoints = try checkpoints.policy()
            recording.keep = try keep.map { text in
                guard let retention = Retention(parsing: text) else {
                    throw UsageError("--keep takes a time from 1s on, such as 30s, or a size from 1MiB on, such as "
                        + "512MiB, not '\(text)'")
                }
                return retention
            }
            defer { withExtendedLifetime(watches) {} }
            for boot in 2... {
                let (result, runs) = try guest.naming {
                    untilFailure
                        ? try repeated(recording, configuration, host, options, stopper)
                        : (try once(recording, configuration, host, options), 1)
                }
                if json, case .traceFull(let text) = result.ending { say("vmrr: \(text)") }
                let isKept = try keeps(recording.path, result.ending)
                report(result, host.kind, runs: runs, path: isKept ? recording.path : nil, saved: saver.finish())
                if !json, let obstacle = EngineOption.obstacle(of: result.ending, on: host) { say("vmrr: \(obstacle)") }
                guard guest.onReboot == .restart, result.ending == .reset, !stopper.isRequested else {
                    return status(of: result.ending)
                }
                // A trace begins where a machine is switched on: what comes next is a trace of its own.
                recording.path = try unused(numbered(path, boot))
                configuration.wallClockStart += Int64(result.seconds)
            }
            preconditionFailure("a guest restarts without end")
        }
    }

    /// A path that may be written to.
    private func unused(_ path: String) throws -> String {
        guard force || !FileManager.default.fileExists(atPath: path) else {
            throw UsageError("\(path) exists; --force replaces it")
        }
        return path
    }

    /// Whether the trace stays; removes it where nothing happened that it is to be kept for.
    private func keeps(_ path: String, _ ending: Ending) throws -> Bool {
        switch saveOn {
        case nil: return true
        case .failure where ending.isFailure || isFatal(ending): return true
        case .failure, .signal:
            guard unlink(path) == 0 else { throw UsageError("can't remove \(path): \(String(cString: strerror(errno)))") }
            return false
        }
    }

    private func once(_ recording: Recording, _ configuration: MachineConfiguration, _ host: EngineHost,
                      _ options: RunOptions) throws -> RunResult {
        var options = options
        options.live.timingSeed = varyTiming
        options.notice = { say("vmrr: \($0)") }
        return try recording.record(configuration, on: host, options: options)
    }

    private func repeated(_ recording: Recording, _ configuration: MachineConfiguration, _ host: EngineHost,
                          _ options: RunOptions, _ stopper: Stopper) throws
        -> (RunResult, Int) {
        var recording = recording
        var options = options
        // Of all the runs only the one that is kept shows its console.
        if options.serial == .stdio { options.serial = .none }
        var progress = ProgressBar("recording until the guest fails")
        for run in 1... {
            // With instructions as the clock each run would be the same.
            let seed = varyTiming ?? (host.kind == .soft && options.live.clock != .host ? 1 : nil)
            options.live.timingSeed = seed.map { $0 &+ UInt64(run - 1) }
            let isFirst = run == 1
            options.notice = { if isFirst { say("vmrr: \($0)") } }
            let result = try recording.record(configuration, on: host, options: options)
            recording.overwrite = true
            let isLast = run == maxRuns || stopper.isRequested
            if result.ending.isFailure || isLast || isFatal(result.ending) {
                progress.finish()
                if result.ending.isFailure {
                    say("vmrr: run \(run) failed")
                    try? showConsole(recording.path)
                } else if !stopper.isRequested {
                    say("vmrr: no failure in \(run) runs; the last one is kept")
                }
                return (result, run)
            }
            progress.update(Double(run) / Double(maxRuns))
        }
        preconditionFailure("the loop ends with the last run")
    }

    private func isFatal(_ ending: Ending) -> Bool {
        switch ending {
        case .hostLimit, .traceFull: true
        default: false
        }
    }

    private func showConsole(_ path: String) throws {
        var cursor = try TraceReader(path: path).cursor()
        var decoder = ConsoleDecoder()
        while let event = try cursor.next() {
            guard event.identity.kind == .portWrite, event.payload == nil else { continue }
            let bytes = decoder.decode(Exit(event.identity, value: event.value))
            if !bytes.isEmpty { write(bytes, to: json ? 2 : 1) }
        }
    }

    /// `path` is nil where the trace was removed.
    private func report(_ result: RunResult, _ engine: EngineKind, runs: Int, path: String?, saved: [String]) {
        if json {
            write(json(result, engine, runs: runs, path: path, saved: saved).text() + "\n")
            return
        }
        say("vmrr: \(describe(result.ending)) after \(result.exits) exits, \(humanSeconds(result.seconds))")
        if let path {
            say("vmrr: \(path): \(result.events) events, \(result.interrupts.total) interrupts "
                + "(\(result.interrupts.atAnchor) between exits), \(humanBytes(result.fileBytes))")
        } else {
            say("vmrr: no trace is kept: --save-on \(saveOn?.rawValue ?? "")")
        }
        if let widest = result.checkpoints.spreadTo {
            say("vmrr: checkpoints took more than 5 % of the time and were spread to \(humanSeconds(widest.seconds))")
        }
        if result.interrupts.total > 0, result.latency.worst > .milliseconds(10) {
            say("vmrr: an interrupt waited \(humanSeconds(result.latency.worst.seconds)) for a place to enter, at worst")
        }
    }

    private func json(_ result: RunResult, _ engine: EngineKind, runs: Int, path: String?, saved: [String]) -> JSON {
        [
            "trace": JSON(path), "saved": .array(saved.map { .string($0) }), "runs": JSON(runs),
            "engine": .string(engine.rawValue),
            "exits": JSON(result.exits), "events": JSON(result.events),
            "instructions": JSON(result.instructions?.rawValue),
            "interrupts": interruptsJSON(result.interrupts),
            "raw_bytes": JSON(result.rawBytes), "file_bytes": JSON(result.fileBytes),
            "checkpoints_spread_to_ns": JSON(result.checkpoints.spreadTo?.rawValue),
            "ended": .string(result.ending.name), "guest_status": JSON(result.ending.guestStatus),
            "state_digest": JSON(result.digests?.state.description),
            "memory_digest": JSON(result.digests?.memory.description),
            "memory_digest_strict": JSON(result.digests?.memoryStrict.description),
            "latency_us": latencyJSON(result.latency), "seconds": .number(result.seconds),
        ]
    }

    private static func defaultName(_ guest: String) -> String {
        let format = DateFormatter()
        format.locale = Locale(identifier: "en_US_POSIX")
        format.dateFormat = "yyyyMMdd-HHmmss"
        return "\(guest)-\(format.string(from: Date())).vmrr"
    }
}

func interruptsJSON(_ counts: InterruptCounts) -> JSON {
    [
        "total": JSON(counts.total), "at_exit": JSON(counts.atExit), "at_window": JSON(counts.atWindow),
        "between_exits": JSON(counts.atAnchor), "nmi": JSON(counts.nmi),
    ]
}

func latencyJSON(_ latency: TraceEnding.Latency) -> JSON {
    [
        "p50": .number(latency.p50.seconds * 1e6), "p99": .number(latency.p99.seconds * 1e6),
        "max": .number(latency.worst.seconds * 1e6),
    ]
}
