import Foundation
import Recorder
import Replay
import Testing
import Trace
import VMCore

/// A recording of a built-in guest in a file of its own, which is deleted with it.
final class RecordedGuest {
    let path: String
    let result: RunResult

    /// - Parameter input: typed after 5 ms.
    init(_ name: String, _ commandLine: String = "", input: String? = nil, checkpoints: CheckpointPolicy.Spacing = .never) throws {
        let guest = try #require(BuiltInGuest.named(name))
        path = FileManager.default.temporaryDirectory.appendingPathComponent("\(name)-\(UUID().uuidString).vmrr").path
        var configuration = MachineConfiguration(image: guest.guestImage(commandLine: commandLine),
                                                 memoryBytes: BuiltInGuest.memoryBytes, wallClockStart: 1_700_000_000)
        configuration.timestamps = guest.timestamps
        var options = RunOptions()
        options.live.deadline = .seconds(20)
        options.serial = try input.map { .script(try SerialScript(parsing: "5ms \"\($0)\"")) } ?? .none
        options.consoleDescriptor = Self.nowhere
        let kvm = try KVM()
        var recording = Recording(path: path, guest: name, commandLine: [], version: "test")
        recording.checkpoints = CheckpointPolicy(checkpoints)
        result = try recording.record(configuration, on: kvm.host, options: options)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    private static let nowhere = open("/dev/null", O_WRONLY)

    func reader() throws -> TraceReader { try TraceReader(path: path) }

    /// With devices.
    func timeline() throws -> Timeline {
        let kvm = try KVM()
        return try Timeline(reader: reader(), host: kvm.host, withDevices: true)
    }
}

@Suite(.needsKVM, .serialized) struct DeviceReplayTests {
    private static let shortened = [
        "ticker": "ticks=100", "spin": "ticks=100", "lost-update": "ticks=100", "clocks": "rounds=500",
        "churn": "rounds=5", "user": "rounds=100", "smc": "rounds=100", "nested-irq": "ticks=100",
        "nmi": "ipis=50 ticks=60", "fpu": "ticks=50", "paging": "rounds=20", "strings": "rounds=1",
    ]

    /// Run again from the checkpoint before, devices stand at each checkpoint as they stood in the recording: registers,
    /// counters, what was typed, and the time at which each of them was touched.
    @Test(arguments: BuiltInGuest.all.map(\.name)) func standAsRecorded(_ name: String) throws {
        let guest = try RecordedGuest(name, Self.shortened[name] ?? "", input: name == "echo" ? "hello\\rquit\\r" : nil,
                                      checkpoints: .exits(40))
        let reader = try guest.reader()
        #expect(reader.checkpoints.count > 1 || reader.lastExit.rawValue < 80)
        let timeline = try guest.timeline()
        for checkpoint in reader.checkpoints {
            // Played, so that the devices come from the checkpoint before.
            try timeline.play(to: checkpoint.exit)
            let recorded = try JSONDecoder().decode(Platform.self, from: reader.state(of: checkpoint.id).devices)
            #expect(timeline.platform == recorded, "exit \(checkpoint.exit.rawValue)")
        }
        #expect(timeline.deviceMismatch == nil)
    }

    /// A platform at another time than the recording's doesn't pass for the recording's.
    @Test func noticesOtherDevices() throws {
        let guest = try RecordedGuest("clocks", "rounds=50")
        let reader = try guest.reader()
        let checkpoint = try #require(reader.checkpoints.first)
        var platform = try JSONDecoder().decode(Platform.self, from: reader.state(of: checkpoint.id).devices)
        platform.receive(.advance(.seconds(100)))
        let timeline = try guest.timeline()
        timeline.platform = platform
        try timeline.seekToEnd()
        #expect(timeline.deviceMismatch != nil)
    }
}
