import Trace
import VMCore

/// Where a run through a trace stops.
public enum Breakpoint: Hashable, Sendable {
    /// Before the instruction at a linear address. At privilege level 3 only where the engine stops there
    /// (`breakpointUser` or `stepUser`).
    case execute(UInt64)
    /// After bytes of guest physical memory have changed; a write of what was there already isn't seen.
    case change(GuestPhysicalAddress, count: Int)
}

extension Timeline {
    /// Moves forwards to the next position at which a breakpoint hits; to the last exit where none does.
    ///
    /// Looks at the exits first; then it steps through the interval in which something hits, to name the instruction.
    ///
    /// - Returns: the breakpoint that hits; nil where none does.
    /// - Throws: `HostError.cannotLand` where the interval is known, but can't be stepped through here.
    public func run(forwardTo breakpoints: [Breakpoint]) throws -> Breakpoint? {
        try run(forwardTo: breakpoints, before: Position(exit: last.next))
    }

    /// Moves back to the latest position before this one at which a breakpoint hits; to the first exit where none does.
    ///
    /// - Returns: the breakpoint that hits; nil where none does.
    public func run(backwardTo breakpoints: [Breakpoint]) throws -> Breakpoint? {
        var end = isAtEnd ? Position(exit: last.next) : position
        while end > Position(exit: first) {
            // The stretch from the kept state before the end: forwards through all hits, to the last.
            let start = nearestStart(atOrBefore: end.instructions > 0 ? end.exit : ExitNumber(end.exit.rawValue - 1))
            try seek(to: start)
            var latest: (breakpoint: Breakpoint, position: Position)?
            // The state at the start itself counts, too: what leads there lies in an earlier stretch.
            if let hit = try hitHere(breakpoints) { latest = (hit, position) }
            while let hit = try run(forwardTo: breakpoints, before: end) { latest = (hit, position) }
            if let latest {
                try seek(to: latest.position)
                return latest.breakpoint
            }
            end = Position(exit: start)
        }
        try seek(to: first)
        return nil
    }

    private func run(forwardTo breakpoints: [Breakpoint], before end: Position) throws -> Breakpoint? {
        while position.exit < last, position < end {
            if let address = soleAddress(breakpoints), engine.retired != nil, !environment.isNextAnchored {
                // An engine that counts instructions stops at a position.
                if try hitHere(breakpoints) != nil {
                    try stepInstruction()
                    if position < end, let hit = try hitHere(breakpoints) { return hit }
                    continue
                }
                let start = position
                if try runToNextExit(stoppingAt: address) {
                    if position < end, let hit = try hitHere(breakpoints) { return hit }
                    continue
                }
                position = Position(exit: start.exit, instructions: engine.retiredSinceExit?.rawValue ?? 0)
                isSound = true
                return position < end ? breakpoints[0] : nil
            }
            let start = position
            let contents = breakpoints.map(content)
            if try mayHitBeforeNextExit(breakpoints, contents) {
                if position != start { try seek(to: start) }
                if let hit = try stepToHit(breakpoints, contents, before: end) { return hit }
            }
        }
        return nil
    }

    /// The address, where there is one breakpoint and that is on an instruction.
    private func soleAddress(_ breakpoints: [Breakpoint]) -> UInt64? {
        guard breakpoints.count == 1, case .execute(let address) = breakpoints[0] else { return nil }
        return address
    }

    /// Moves to the next exit, or somewhere before it, where a breakpoint may hit on the way.
    private func mayHitBeforeNextExit(_ breakpoints: [Breakpoint], _ contents: [[UInt8]?]) throws -> Bool {
        let addresses = breakpoints.compactMap { if case .execute(let address) = $0 { address } else { nil } }
        if addresses.isEmpty {
            try step()
        } else {
            // A breakpoint serves the search for an anchor, too, and there is one; so such intervals are stepped.
            guard addresses.count == 1, capabilities.breakpointKernel, !environment.isNextAnchored else { return true }
            guard try runToNextExit(stoppingAt: addresses[0]) else { return true }
            if try engine.registers().linearRIP == addresses[0] { return true }
        }
        return zip(breakpoints, contents).contains { content($0) != $1 }
    }

    /// Steps until a breakpoint hits; nil at the next exit or at `end` without.
    private func stepToHit(
        _ breakpoints: [Breakpoint], _ contents: [[UInt8]?], before end: Position
    ) throws -> Breakpoint? {
        var contents = contents
        let start = position.exit
        while position.exit == start, position < end {
            try stepInstruction()
            guard position < end else { return nil }
            let next = breakpoints.map(content)
            for (i, breakpoint) in breakpoints.enumerated() where next[i] != contents[i] { return breakpoint }
            contents = next
            if let hit = try hitHere(breakpoints) { return hit }
        }
        return nil
    }

    /// A breakpoint on the instruction here.
    private func hitHere(_ breakpoints: [Breakpoint]) throws -> Breakpoint? {
        let address = try engine.registers().linearRIP
        return breakpoints.first { $0 == .execute(address) }
    }

    private func content(_ breakpoint: Breakpoint) -> [UInt8]? {
        guard case .change(let address, let count) = breakpoint else { return nil }
        return memory.read(address, count: count)
    }

    /// Moves to the next exit; false where the guest came to `address` before it. The timeline then stands between
    /// positions, and must be moved to one.
    private func runToNextExit(stoppingAt address: UInt64) throws -> Bool {
        if !isSound { try seek(to: position) }
        let start = position.exit
        environment.target = start.next
        environment.breakAddress = address
        defer { environment.breakAddress = nil }
        try runMachine()
        isSound = position.exit != start
        return isSound
    }
}
