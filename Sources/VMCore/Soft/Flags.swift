/// Bits of RFLAGS that the soft engine works with. Source: Intel SDM Vol. 1, 3.4.3.
enum Flag {
    static let cf: UInt64 = 1 << 0
    static let pf: UInt64 = 1 << 2
    static let af: UInt64 = 1 << 4
    static let zf: UInt64 = 1 << 6
    static let sf: UInt64 = 1 << 7
    static let tf: UInt64 = 1 << 8
    static let `if`: UInt64 = 1 << 9
    static let df: UInt64 = 1 << 10
    static let of: UInt64 = 1 << 11
    static let iopl: UInt64 = 3 << 12
    static let nt: UInt64 = 1 << 14
    static let rf: UInt64 = 1 << 16
    static let vm: UInt64 = 1 << 17
    static let ac: UInt64 = 1 << 18
    static let vif: UInt64 = 1 << 19
    static let vip: UInt64 = 1 << 20
    static let id: UInt64 = 1 << 21

    static let arithmetic = cf | pf | af | zf | sf | of
    static let implemented: UInt64 = 0x3F_7FD7
}

/// The arithmetic flags, worked out only when someone asks.
extension Core {
    @inline(__always) var cf: Bool { s.carries >> 63 != 0 }
    @inline(__always) var zf: Bool { s.result == 0 }
    @inline(__always) var sf: Bool { (s.result ^ s.delta) >> 63 != 0 }
    @inline(__always) var of: Bool { (s.carries ^ s.carries << 1) >> 63 != 0 }
    @inline(__always) var af: Bool { s.carries & 8 != 0 }
    @inline(__always) var pf: Bool {
        let byte = UInt32(truncatingIfNeeded: s.result ^ s.delta) & 0xFF
        // Bit n of the constant is set where n has an even number of bits.
        return (0x9669 as UInt32) >> ((byte ^ byte >> 4) & 15) & 1 != 0
    }

    var rflags: UInt64 {
        get {
            s.flags | (cf ? Flag.cf : 0) | (pf ? Flag.pf : 0) | (af ? Flag.af : 0) | (zf ? Flag.zf : 0)
                | (sf ? Flag.sf : 0) | (of ? Flag.of : 0)
        }
        nonmutating set {
            s.flags = newValue & Flag.implemented & ~Flag.arithmetic | 2
            setArithmetic(newValue)
        }
    }

    /// Loads CF, PF, AF, ZF, SF and OF as they stand in RFLAGS.
    func setArithmetic(_ flags: UInt64) {
        s.result = flags & Flag.zf != 0 ? 0 : 0x100
        s.delta = (flags & Flag.sf != 0 ? 1 << 63 : 0) | (flags & Flag.pf != 0 ? 0 : 1)
        let carry: UInt64 = flags & 1
        let overflow = flags >> 11 & 1
        s.carries = carry << 63 | (carry ^ overflow) << 62 | (flags & Flag.af) >> 1
    }

    /// Changes CF alone.
    @inline(__always)
    func setCF(_ carry: Bool) { setCarryOverflow(carry, of) }

    /// Changes CF and OF alone.
    @inline(__always)
    func setCarryOverflow(_ carry: Bool, _ overflow: Bool) {
        s.carries = (carry ? 1 << 63 : 0) | (carry != overflow ? 1 << 62 : 0) | s.carries & 8
    }

    @inline(__always)
    func setLogic<T: Word>(_ result: T) {
        s.result = result.extended
        s.carries = 0
        s.delta = 0
    }

    /// Flags of an addition or subtraction from its result and the carry (borrow) out of each bit.
    @inline(__always)
    private func setCarries<T: Word>(_ result: T, _ carries: T) {
        s.result = result.extended
        s.delta = 0
        s.carries = T.bits == 64
            ? UInt64(truncatingIfNeeded: carries)
            : UInt64(truncatingIfNeeded: carries) << (64 - T.bits) | UInt64(truncatingIfNeeded: carries & 8)
    }

    /// ZF, SF and PF from a result, with CF, OF and AF as given.
    @inline(__always)
    func setResult<T: Word>(_ result: T, cf: Bool, of: Bool, af: Bool) {
        s.result = result.extended
        s.delta = 0
        s.carries = (cf ? 1 << 63 : 0) | (cf != of ? 1 << 62 : 0) | (af ? 8 : 0)
    }

    @inline(__always)
    func add<T: Word>(_ a: T, _ b: T) -> T {
        let r = a &+ b
        setCarries(r, (a & b) | ((a | b) & ~r))
        return r
    }

    @inline(__always)
    func adc<T: Word>(_ a: T, _ b: T) -> T {
        let r = a &+ b &+ (cf ? 1 : 0)
        setCarries(r, (a & b) | ((a | b) & ~r))
        return r
    }

    @inline(__always)
    func sub<T: Word>(_ a: T, _ b: T) -> T {
        let r = a &- b
        setCarries(r, (~a & b) | ((~a | b) & r))
        return r
    }

    @inline(__always)
    func sbb<T: Word>(_ a: T, _ b: T) -> T {
        let r = a &- b &- (cf ? 1 : 0)
        setCarries(r, (~a & b) | ((~a | b) & r))
        return r
    }

    @inline(__always)
    func inc<T: Word>(_ a: T) -> T {
        let r = a &+ 1
        setResult(r, cf: cf, of: r == (1 as T) << T(T.bits - 1), af: r & 15 == 0)
        return r
    }

    @inline(__always)
    func dec<T: Word>(_ a: T) -> T {
        let r = a &- 1
        setResult(r, cf: cf, of: a == (1 as T) << T(T.bits - 1), af: a & 15 == 0)
        return r
    }

    /// The sixteen conditions of Jcc, SETcc and CMOVcc. Source: Intel SDM Vol. 1, appendix B.
    func condition(_ code: UInt8) -> Bool {
        let holds: Bool
        switch code >> 1 & 7 {
        case 0: holds = of
        case 1: holds = cf
        case 2: holds = zf
        case 3: holds = cf || zf
        case 4: holds = sf
        case 5: holds = pf
        case 6: holds = sf != of
        default: holds = zf || sf != of
        }
        return holds != (code & 1 != 0)
    }
}
