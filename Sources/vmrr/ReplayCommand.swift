import ArgumentParser
import Foundation
import Recorder
import Replay
import Trace
import VMCore

struct ReplayCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "replay", abstract: "Replays a trace and checks it against the recording.",
        discussion: """
            Every exit is compared with the recorded one, the registers every 256 exits, and the end state as a whole. \
            The first difference ends the replay with status 3. A recording in which the guest failed replays with \
            status 10.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("""
        Stop right after this exit, or so many instructions later: N, N+K or mark:NAME. 0 is the start. Begins at the \
        nearest checkpoint, unless --console is given.
        """, valueName: "exit"))
    var to: String?

    @Option(help: ArgumentHelp("Stop right after the first exit at which this holds; docs/predicates.md has the language.",
                               valueName: "predicate"))
    var until: String?

    @OptionGroup var symbols: SymbolOptions

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print what the guest printed.")
    var console = false

    @Option(help: ArgumentHelp("With --console: how many times faster than it was recorded, such as 1 or 0.5; max doesn't wait.",
                               valueName: "n|max"))
    var speed = "max"

    @Flag(help: "Say in detail what was compared.")
    var verify = false

    @Option(help: ArgumentHelp("Ends the replay after this time, such as 30s.", valueName: "time"))
    var deadline: String?

    @Flag(help: "Print a report in JSON on standard output; the guest's console goes to standard error.")
    var json = false

    func validate() throws {
        if to != nil, until != nil { throw ValidationError("--to and --until exclude each other") }
        if speed != "max", !console { throw ValidationError("--speed goes with --console") }
    }

    func run() throws {
        try reporting {
            let path = try trace.path()
            let limit = try deadline.map { text in
                guard let span = Nanoseconds(parsing: text), span.rawValue > 0 else {
                    throw UsageError("--deadline takes a time such as 30s, not '\(text)'")
                }
                return span
            }
            let factor = try ConsolePace.speed(parsing: speed)
            let reader = try TraceReader(path: path)
            var target = try to.map { try parsePosition($0, option: "--to", in: reader) }
            let predicate = try until.map { try symbols.predicate($0, of: reader, option: "--until") }
            let host = try engine.open(for: reader.description())
            let replayer = try Replayer(reader: reader, host: host)
            if let predicate {
                let timeline = replayer.timeline
                target = Position(exit: try watched(timeline) { try timeline.firstExit(where: predicate) })
                try timeline.seek(to: timeline.first)
            }
            let result = try replay(replayer, to: target, limit: limit, speed: factor)
            if json {
                write(json(result, host.kind).text() + "\n")
            } else {
                report(result, replayer, path: path)
            }
            return status(result, replayer)
        }
    }

    private func replay(_ replayer: Replayer, to target: Position?, limit: Nanoseconds?, speed: Double?) throws
        -> ReplayResult {
        let stopper = Stopper()
        let watch = SignalWatch { stopper.stop() }
        defer { withExtendedLifetime(watch) {} }
        var timer: (any DispatchSourceTimer)?
        if let limit {
            let made = DispatchSource.makeTimerSource(queue: .global())
            made.schedule(deadline: .now() + limit.seconds)
            made.setEventHandler { stopper.stop() }
            made.resume()
            timer = made
        }
        defer { timer?.cancel() }

        var decoder = ConsoleDecoder()
        var progress = ProgressBar("replaying")
        let total = Double(max(1, (target?.exit ?? replayer.reader.lastExit).rawValue))
        var count: UInt64 = 0
        let sink: Int32 = json ? 2 : 1
        let showsConsole = console
        stopper.attach(replayer.timeline.stopper)
        let first = replayer.timeline.position.exit.rawValue
        var pace = try speed.map { try ConsolePace(replayer.reader, after: replayer.timeline.position.exit, speed: $0) }
        var failure: (any Error)?
        let result = try replayer.replay(from: target == nil || console ? .first : .nearest, to: target) { exit in
            count += 1
            if showsConsole {
                let bytes = decoder.decode(exit)
                if !bytes.isEmpty {
                    do {
                        try pace?.wait(for: ExitNumber(first + count)) { stopper.isRequested }
                    } catch {
                        failure = error
                        stopper.stop()
                    }
                    write(bytes, to: sink)
                }
            }
            if count & 0xFFF == 0 { progress.update(Double(count) / total) }
        }
        progress.finish()
        if let failure { throw failure }
        return result
    }

    private func status(_ result: ReplayResult, _ replayer: Replayer) -> Status {
        if result.divergence != nil { return .diverged }
        if result.stopped { return .other }
        return result.reachedEnd && replayer.ending?.failed == true ? .guestFailed : .done
    }

    private func report(_ result: ReplayResult, _ replayer: Replayer, path: String) {
        if let divergence = result.divergence {
            say("vmrr: \(path) \(divergence)")
            return
        }
        if result.stopped {
            say("vmrr: stopped after \(result.exits) exits")
            return
        }
        let start = result.start > replayer.timeline.first ? " from exit \(result.start.rawValue) on" : ""
        var line = "\(path): replayed \(result.exits) exits\(start) in \(humanSeconds(result.seconds)), no divergence"
        if let ending = replayer.ending, result.reachedEnd {
            line += "; the recording ended: \(ending.ended)" + (ending.guestStatus.map { " \($0)" } ?? "")
        } else if result.reachedEnd {
            line += "; the recording was killed after the last of them"
        }
        show(line)
        guard verify, let digests = result.digests else { return }
        show("state  \(digests.state)\(result.comparedEnd ? "  as recorded" : "")")
        show("memory \(digests.memory)\(result.comparedEnd ? "  as recorded" : "")")
        if result.comparedEnd, let recorded = replayer.ending?.digests {
            show(recorded.memoryStrict == digests.memoryStrict
                ? "memory is the same bit by bit"
                : "memory differs only in accessed/dirty bits of page-table entries, which the processor sets as its "
                    + "translation caches need them")
        }
        if result.landing.landings > 0 {
            let searched = result.landing.landings - result.landing.counted
            show(searched == 0
                ? "\(result.landing.landings) points between exits were found again by counting instructions"
                : "\(searched) points between exits were found again in \(result.landing.arrivals) arrivals, "
                    + "\(result.landing.overshoots) after running too far")
        }
    }

    /// The report shares standard output with nothing: the guest's console has it when it is shown.
    private func show(_ line: String) { write(line + "\n", to: console ? 2 : 1) }

    private func json(_ result: ReplayResult, _ engine: EngineKind) -> JSON {
        let diverged = result.divergence.map(divergenceJSON) ?? .null
        return [
            "engine": .string(engine.rawValue), "started_at": JSON(result.start.rawValue),
            "exits": JSON(result.exits), "diverged": diverged,
            "state_digest": JSON(result.digests?.state.description),
            "memory_digest": JSON(result.digests?.memory.description),
            "memory_digest_strict": JSON(result.digests?.memoryStrict.description),
            "end_compared": .bool(result.comparedEnd), "landings": JSON(result.landing.landings),
            "counted": JSON(result.landing.counted), "arrivals": JSON(result.landing.arrivals), "overshoots": JSON(result.landing.overshoots),
            "seconds": .number(result.seconds),
        ]
    }
}
