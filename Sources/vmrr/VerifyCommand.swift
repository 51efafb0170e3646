import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct VerifyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Replays all checkpoint intervals of a trace, in parallel.",
        discussion: """
            Each interval is replayed from its checkpoint and compared with the digests of the next one, the last with \
            the end of the recording. A bad interval hinders no other. Status 3 where one diverges, 65 where the trace \
            is damaged.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("Threads, each with a machine and a copy of its memory; without it, one a processor.",
                               valueName: "n"))
    var jobs: Int?

    @Option(help: ArgumentHelp("Verify only the i-th of n shares of the intervals, from 0: 0/8 to 7/8.", valueName: "i/n"))
    var shard: String?

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print a report in JSON on standard output.")
    var json = false

    func run() throws {
        try reporting {
            let path = try trace.path()
            let jobs = jobs ?? ProcessInfo.processInfo.activeProcessorCount
            guard (1...1024).contains(jobs) else { throw UsageError("--jobs takes 1 to 1024, not \(jobs)") }
            let share = try shard.map { text in
                guard let shard = Verifier.Shard(text) else {
                    throw UsageError("--shard takes i/n with i from 0 to n - 1, such as 0/8, not '\(text)'")
                }
                return shard
            } ?? .all
            let reader = try TraceReader(path: path)
            let verifier = try Verifier(reader: reader, host: engine.open(for: reader.description()))
            let stopper = Stopper()
            let watch = SignalWatch { stopper.stop() }
            defer { withExtendedLifetime(watch) {} }
            var progress = ProgressBar("verifying")
            let start = hostTime()
            let outcomes = verifier.verify(share, jobs: jobs, started: { stopper.attach($0) }) { progress.update($0) }
            progress.finish()
            let report = Report(path: path, share: share, jobs: jobs, all: verifier.intervals.count,
                                wanted: verifier.intervals(of: share).count, outcomes: outcomes,
                                seconds: (hostTime() - start).seconds)
            if json { write(report.json.text() + "\n") } else { report.print() }
            return report.status
        }
    }

    private struct Report {
        var path: String
        var share: Verifier.Shard
        var jobs: Int
        var all: Int
        var wanted: Int
        var outcomes: [Verifier.Outcome]
        var seconds: Double

        var bad: [Verifier.Outcome] { outcomes.filter { $0.fault != nil } }
        var noisy: [Verifier.Outcome] { outcomes.filter(\.hasNoise) }
        var exits: UInt64 { outcomes.reduce(0) { $0 + $1.interval.end.rawValue - $1.interval.start.rawValue } }

        /// Damage weighs more than a divergence: what is damaged can't have been replayed.
        var status: Status {
            var status = outcomes.count == wanted ? Status.done : .other
            for outcome in bad {
                switch outcome.fault {
                case .damage(let error): return Status(error)
                case .divergence: status = .diverged
                case .host: if status != .diverged { status = .hostLacks }
                case nil: break
                }
            }
            return status
        }

        func print() {
            for outcome in bad {
                let interval = outcome.interval
                let name = "interval \(interval.number), exits \(interval.start.rawValue) to \(interval.end.rawValue)"
                switch outcome.fault {
                case .divergence(let divergence): say("vmrr: \(path): \(name): \(divergence)")
                case .damage(let error): say("vmrr: \(path): \(name): \(error)")
                case .host(let text): say("vmrr: \(path): \(name): \(text)")
                case nil: break
                }
            }
            if outcomes.count < wanted { say("vmrr: stopped after \(outcomes.count) of \(wanted) intervals") }
            let part = share.count > 1 ? " (share \(share))" : ""
            let good = outcomes.count - bad.count
            vmrr.write("\(path): \(good) of \(wanted) intervals\(part) verified, \(exits) exits in "
                + "\(humanSeconds(seconds)) on \(jobs) threads\n")
            if !noisy.isEmpty {
                vmrr.write("the memory of \(noisy.count) differs only in accessed/dirty bits of page-table entries, which "
                    + "the processor sets as its translation caches need them\n")
            }
        }

        var json: JSON {
            [
                "trace": .string(path), "intervals": JSON(all), "shard": .string(share.description), "jobs": JSON(jobs),
                "wanted": JSON(wanted), "verified": JSON(outcomes.count - bad.count), "exits": JSON(exits),
                "bad": .array(bad.map(Self.json)),
                "compared": JSON(outcomes.count(where: \.isCompared)),
                "accessed_dirty_noise": .array(noisy.map { JSON($0.interval.number) }), "seconds": .number(seconds),
            ]
        }

        private static func json(_ outcome: Verifier.Outcome) -> JSON {
            var diverged = JSON.null, damage = JSON.null, host = JSON.null
            switch outcome.fault {
            case .divergence(let divergence): diverged = divergenceJSON(divergence)
            case .damage(let error): damage = .string(error.description)
            case .host(let text): host = .string(text)
            case nil: break
            }
            return [
                "interval": JSON(outcome.interval.number), "checkpoint": JSON(outcome.interval.checkpoint.id.rawValue),
                "from": JSON(outcome.interval.start.rawValue), "to": JSON(outcome.interval.end.rawValue),
                "diverged": diverged, "damage": damage, "host": host,
            ]
        }
    }
}

func divergenceJSON(_ divergence: Divergence) -> JSON {
    [
        "exit": JSON(divergence.exit.rawValue), "expected": .string(divergence.expected),
        "actual": .string(divergence.actual),
    ]
}
