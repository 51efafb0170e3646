import CKVM
import Foundation
import Replay
import Trace
import VMCore

/// Holds a console that is played back to the speed of the recording's machine time.
struct ConsolePace {
    private var clock: ExitClock
    /// How many times faster.
    private let speed: Double
    private let start: (host: Nanoseconds, machine: Nanoseconds)
    /// How long a wait goes on after it was given up.
    private static let slice = Nanoseconds.milliseconds(20)

    /// For the exits after `exit`, from now on.
    init(_ reader: TraceReader, after exit: ExitNumber, speed: Double) throws {
        clock = try ExitClock(reader, after: exit)
        self.speed = speed
        start = (hostTime(), try clock.time(of: exit))
    }

    /// `1`, `0.5` or `10`; nil where it is `max`, which waits for nothing.
    static func speed(parsing text: String) throws -> Double? {
        if text == "max" { return nil }
        guard let speed = Double(text), speed >= 0.01, speed <= 1e6 else {
            throw UsageError("--speed takes max, or how many times faster than the recording, such as 1, 0.5 or 10, not '\(text)'")
        }
        return speed
    }

    /// Waits until it is time for an exit, or until `isStopped`.
    mutating func wait(for exit: ExitNumber, isStopped: () -> Bool) throws {
        let machine = try clock.time(of: exit)
        guard machine > start.machine else { return }
        let due = start.host + Nanoseconds(UInt64(min(Double((machine - start.machine).rawValue) / speed, 1e18)))
        while !isStopped() {
            let now = hostTime()
            guard now < due else { return }
            usleep(UInt32(min(due - now, Self.slice).rawValue / 1000 + 1))
        }
    }
}
