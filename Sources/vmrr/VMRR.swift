import ArgumentParser
import CKVM
import Trace
import VMCore
import Recorder
import Replay

@main
struct VMRR: ParsableCommand {
    static let version = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "vmrr",
        abstract: "Records virtual machines and replays them exactly.",
        discussion: """
            vmrr runs a guest under KVM, writes everything that enters it into one file, and runs it again from that \
            file as often as you like.

            Exit status: 0 done, 10 the guest failed, 3 the replay diverged, 65 a bad trace or image, 64 wrong usage, \
            69 the host lacks something, 1 anything else.
            """,
        version: version,
        subcommands: [
            DoctorCommand.self, GuestsCommand.self, RunCommand.self, RecordCommand.self, ReplayCommand.self,
            ResumeCommand.self, SnapshotCommand.self, PackCommand.self, VerifyCommand.self, InfoCommand.self,
            CheckpointsCommand.self, EventsCommand.self, ExportCommand.self,
            StateCommand.self, TraceCommand.self, BisectCommand.self, WritesCommand.self, DiffCommand.self,
            DivergeCommand.self,
        ])
}

/// The exit statuses that scripts can rely on.
enum Status: Int32 {
    case done = 0
    case other = 1
    case diverged = 3
    case guestFailed = 10
    case usage = 64
    case badTrace = 65
    case hostLacks = 69

    init(_ error: any Error) {
        switch error {
        case TraceError.notFound: self = .usage
        case let error as TraceError: self = error.exitStatus == 65 ? .badTrace : .other
        case let error as BootError: self = error.isUsage ? .usage : .badTrace
        case let error as HostError:
            if case .call = error { self = .other } else { self = .hostLacks }
        case is ReplayError, is FindError, is SerialScript.SyntaxError, is UsageError, is KeepTooSmall: self = .usage
        case is Divergence: self = .diverged
        default: self = .other
        }
    }
}

/// A wrong option that only shows once the command runs.
struct UsageError: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// Runs a command's body; an error becomes one line on standard error and the matching status.
func reporting(_ body: () throws -> Status) throws {
    // A full disk and a closed pipe are reported by the calls that meet them.
    ckvm_ignore_signal(SIGXFSZ)
    ckvm_ignore_signal(SIGPIPE)
    let status: Status
    do {
        status = try body()
    } catch let error as ExitCode {
        throw error
    } catch {
        say("vmrr: \(error)")
        throw ExitCode(Status(error).rawValue)
    }
    if status != .done { throw ExitCode(status.rawValue) }
}
