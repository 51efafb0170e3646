import ArgumentParser
import Recorder
import VMCore

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Runs a guest without recording it.")

    @OptionGroup var guest: GuestOptions

    @Flag(help: "Print a report in JSON on standard output; the guest's console goes to standard error.")
    var json = false

    func run() throws {
        try reporting {
            var configuration = try guest.machine()
            var options = try guest.world.runOptions()
            let host = try guest.engine.open()
            options.live.clock = guest.world.clock(on: host)
            if json { options.consoleDescriptor = 2 }
            options.notice = { say("vmrr: \($0)") }
            let stopper = Stopper()
            options.started = { stopper.attach($0) }
            let watch = SignalWatch { stopper.stop() }
            defer { withExtendedLifetime(watch) {} }
            while true {
                let result = try guest.naming { try Recorder.run(configuration, on: host, options: options) }
                if json {
                    write(report(result, host.kind).text() + "\n")
                } else {
                    say("vmrr: \(describe(result.ending)) after \(result.exits) exits, \(humanSeconds(result.seconds))")
                    if let obstacle = EngineOption.obstacle(of: result.ending, on: host) { say("vmrr: \(obstacle)") }
                }
                guard guest.onReboot == .restart, result.ending == .reset, !stopper.isRequested else {
                    return status(of: result.ending)
                }
                configuration.wallClockStart += Int64(result.seconds)
            }
        }
    }

    private func report(_ result: RunResult, _ engine: EngineKind) -> JSON {
        [
            "engine": .string(engine.rawValue), "exits": JSON(result.exits),
            "instructions": JSON(result.instructions?.rawValue), "ended": .string(result.ending.name),
            "guest_status": JSON(result.ending.guestStatus), "seconds": .number(result.seconds),
        ]
    }
}

/// The status with which a command that ran a guest ends.
func status(of ending: Ending) -> Status {
    switch ending {
    case .debugExit, .tripleFault, .panic: ending.isFailure ? .guestFailed : .done
    case .powerOff, .reset, .halted, .stopped, .endOfTrace: .done
    case .deadline, .traceFull: .other
    case .hostLimit: .hostLacks
    }
}

func describe(_ ending: Ending) -> String {
    switch ending {
    case .debugExit(0): "the guest ended with success"
    case .debugExit(let value): "the guest failed with \(value)"
    case .tripleFault: "the guest ended in a triple fault"
    case .panic: "the guest's kernel panicked"
    case .powerOff: "the guest switched the machine off"
    case .reset: "the guest reset the machine"
    case .halted: "the guest halted with nothing to wake it"
    case .deadline: "the deadline ended the run"
    case .stopped: "stopped"
    case .traceFull(let text), .hostLimit(let text): text
    case .endOfTrace: "the end of the trace"
    }
}
