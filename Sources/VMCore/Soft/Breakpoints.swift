/// The guest's own breakpoints, in its debug registers. While any is enabled the engine takes one instruction at a time
/// and no access goes the fast way.
///
/// Source: Intel SDM Vol. 3B, 18.2 and 18.3; AMD APM Vol. 2, 13.1.
extension Core {
    enum BreakpointKind: UInt64 {
        case execute = 0
        case write = 1
        case port = 2
        /// Bit 0 is set for writes as well: a read matches this kind alone.
        case readWrite = 3
    }

    /// Whether any breakpoint is enabled, locally or globally.
    var hasBreakpoints: Bool { s.dr7 & 0xFF != 0 }

    private func breakpointAddress(_ i: UInt64) -> UInt64 {
        switch i {
        case 0: s.dr.0
        case 1: s.dr.1
        case 2: s.dr.2
        default: s.dr.3
        }
    }

    /// A bit for each enabled breakpoint of some kinds whose bytes an access touches, as in DR6.
    private func matches(_ address: UInt64, _ size: UInt64, _ wanted: (BreakpointKind) -> Bool) -> UInt64 {
        var found: UInt64 = 0
        for i in 0..<4 as Range<UInt64> where s.dr7 >> (2 * i) & 3 != 0 {
            guard let kind = BreakpointKind(rawValue: s.dr7 >> (16 + 4 * i) & 3), wanted(kind) else { continue }
            let length: UInt64 = [1, 2, 8, 4][Int(s.dr7 >> (18 + 4 * i) & 3)]
            let start = breakpointAddress(i) & ~(length - 1)
            if address &- start < length || start &- address < size { found |= 1 << i }
        }
        return found
    }

    /// The breakpoints on the instruction at RIP, as DR6 has them.
    func instructionBreakpoints() -> UInt64 {
        matches((s.codeBase &+ s.rip) & s.linearMask, 1) { $0 == .execute }
    }

    /// Notes the breakpoints on an access to data: the trap comes when the instruction is complete.
    @inline(never)
    func noteAccess(_ linear: UInt64, _ size: UInt64, writes: Bool) {
        s.pendingBreakpoints |= matches(linear, size) { $0 == .readWrite || writes && $0 == .write }
    }

    /// The same for a port, where CR4.DE makes breakpoints on these possible.
    @inline(never)
    func notePort(_ port: UInt16, _ size: UInt64) {
        guard s.cr4 & 8 != 0 else { return }
        s.pendingBreakpoints |= matches(UInt64(port), size) { $0 == .port }
    }

    /// Puts what was met into DR6: B0 to B3 anew, the other bits are the guest's to clear.
    func setDebugStatus(_ breakpoints: UInt64, singleStep: Bool) {
        s.dr6 = s.dr6 & ~0xF | breakpoints | (singleStep ? 1 << 14 : 0)
    }
}
