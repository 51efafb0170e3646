import ArgumentParser
import Foundation
import Recorder
import VMCore

/// What surrounds a live guest: the same options for every command that runs one.
struct WorldOptions: ParsableArguments {
    @Option(help: ArgumentHelp("Where the first serial line leads: stdio (Ctrl-a x quits, Ctrl-a ? lists the keys), file:PATH (output only), "
        + "script:PATH (timed input), none.", valueName: "where"))
    var serial: String = "stdio"

    @Option(help: ArgumentHelp("Ends the run after this time, such as 30s or 5min.", valueName: "time"))
    var deadline: String?

    @Option(help: ArgumentHelp("With --engine soft: so many millions of the guest's instructions are a second of its "
        + "time.", valueName: "n"))
    var mips: UInt64 = MachineClock.defaultMillionsPerSecond

    @Flag(help: "With --engine soft: the guest's time is the host's, as under KVM. Default at a terminal.")
    var realtime = false

    /// What the guest's time is made of. Instructions make the same run of the same input; a person at the terminal
    /// expects the time on the wall.
    func clock(on host: EngineHost) -> MachineClock.Source {
        let isInteractive = serial == "stdio" && isatty(0) != 0
        return host.kind == .soft && !realtime && !isInteractive ? .instructions(millionsPerSecond: mips) : .host
    }

    func validate() throws {
        guard (1...100_000).contains(mips) else { throw ValidationError("--mips takes 1 to 100000") }
    }

    func runOptions() throws -> RunOptions {
        var options = RunOptions()
        if let deadline {
            guard let span = Nanoseconds(parsing: deadline), span.rawValue > 0 else {
                throw UsageError("--deadline takes a time such as 30s or 5min, not '\(deadline)'")
            }
            options.live.deadline = span
        }
        options.serial = try connection()
        return options
    }

    private func connection() throws -> SerialConnection {
        switch serial {
        case "stdio": return .stdio
        case "none": return .none
        case _ where serial.hasPrefix("file:") && serial.count > 5: return .file(String(serial.dropFirst(5)))
        case _ where serial.hasPrefix("script:") && serial.count > 7:
            let path = String(serial.dropFirst(7))
            do {
                return .script(try SerialScript(parsing: String(decoding: try GuestOptions.readFile(path), as: UTF8.self)))
            } catch let error as SerialScript.SyntaxError {
                throw UsageError("\(path): \(error)")
            }
        default: throw UsageError("--serial takes stdio, none, file:PATH or script:PATH, not '\(serial)'")
        }
    }
}

/// How often a recording takes checkpoints.
struct CheckpointOptions: ParsableArguments {
    @Option(help: ArgumentHelp("How far apart checkpoints are: a time such as 250ms, so many exits such as 10000exits, or "
        + "none. Default: every 250ms, and after 5000 exits where 50ms have gone by. They are spread out where they take "
        + "more than 5 % of the time.", valueName: "spacing"))
    var checkpointEvery: String?

    func policy() throws -> CheckpointPolicy {
        guard let checkpointEvery else { return CheckpointPolicy() }
        guard let spacing = CheckpointPolicy.Spacing(parsing: checkpointEvery) else {
            throw UsageError("--checkpoint-every takes a time such as 250ms, a number of exits such as "
                + "10000exits, or none, not '\(checkpointEvery)'")
        }
        return CheckpointPolicy(spacing)
    }
}
